"""``benchmarks/planted_patch.py``: a small network's heat lies where its class was planted."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cvattn.maps import rollout_heat
from cvattn.models import VisionTransformer

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "planted_patch.py"


COLOURS = torch.tensor([[2.0, 0, 0], [0, 0, 2.0], [2.0, 0, 2.0], [0, 2.0, 2.0], [2.0, 2.0, 0]])


def planted(count: int, generator: torch.Generator):
    """12 x 20 pixels: one cell of 4 x 4 has the colour of its class, two are green for nothing."""
    cells = torch.rand(count, 15, generator=generator).argsort(1)[:, :3]
    classes = torch.randint(len(COLOURS), (count,), generator=generator)
    grid = torch.zeros(count, 3, 15)
    each = torch.arange(count)
    grid[each, :, cells[:, 0]] = COLOURS[classes]
    grid[each[:, None], 1, cells[:, 1:]] = 2.0
    pixels = grid.unflatten(2, (3, 5)).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return pixels + 0.3 * torch.randn(pixels.shape, generator=generator), classes, cells[:, 0]


def test_the_heat_of_a_trained_network_lies_in_the_patch():
    """Which it learned by itself: H and W swapped, or rows for columns, would lead elsewhere."""
    generator = torch.Generator().manual_seed(3)
    model = VisionTransformer(
        len(COLOURS),
        image_size=(12, 20),
        patch_size=4,
        embed_dim=16,
        num_heads=2,
        ffn_dim=16,
        num_layers=2,
        pool="cls",
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(300):
        images, classes, _ = planted(64, generator)
        loss = torch.nn.functional.cross_entropy(model(images), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.02:
            break
    else:
        pytest.fail(f"it learned nothing: loss {loss:.2f}")
    images, classes, cells = planted(200, generator)
    model.eval()
    # By chance 1 in 15, and of the coloured cells 1 in 3. Eight seeds gave 0.47 to 0.85 and 0.79
    # to 1.0: what is asked for is far from either.
    for target, least in ((classes, 0.3), (None, 0.6)):
        heat = rollout_heat(model, images, target=target)
        assert heat.shape == (200, 12, 20)
        peak = heat.flatten(1).argmax(1)
        found = peak // 20 // 4 * 5 + peak % 20 // 4
        assert (found == cells).float().mean() > least


@pytest.mark.slow
def test_the_command_leaves_rows(tmp_path):
    pytest.importorskip("pytorch_grad_cam", reason="pip install -e '.[peers]'")
    output = tmp_path / "rows.csv"
    words = ["--seeds", "0", "--steps", "20", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    methods = {
        network: [r["method"] for r in rows if r["network"] == network]
        for network in ("sagan", "vit")
    }
    assert methods["sagan"] == [
        "attention",
        "attention x gradient",
        "Grad-CAM",
        "Grad-CAM, last map",
    ]
    assert len(methods["vit"]) == 6
    assert all(0 <= float(row["hits"]) <= 1 for row in rows)
    assert {row["chance"] for row in rows} == {"0.0375"}
