"""Real processes: signals, several ranks, and what a shell sees."""

import json
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from runs import ROOT, start, train

# With dropout, so that the random state matters; fp32 on one thread, so that sums are in order.
RUN = [
    *("data=digits", "model=vit", "model.embed_dim=24", "model.num_heads=3", "model.ffn_dim=40"),
    *("model.num_layers=3", "model.dropout=0.1", "trainer.precision=32-true"),
    *("trainer.accelerator=cpu", "trainer.max_epochs=6", "recipe.resizing=[[0.5,0.4]]"),
]


def stopped(by: signal.Signals, last: Path, *, code: int) -> str:
    """Start RUN, send the signal in the middle of an epoch, and return what was printed."""
    folder = last.parents[1]
    process = start(*RUN, f"hydra.run.dir={folder}", cwd=folder.parent)
    deadline = time.time() + 120
    while not last.exists() and time.time() < deadline:
        time.sleep(0.02)
    time.sleep(0.4)  # well into an epoch: one takes about a second
    process.send_signal(by)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    return output


@pytest.mark.slow
def test_trap_21_sigterm_keeps_the_last_epoch_and_says_so(tmp_path):
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    output = stopped(signal.SIGTERM, last, code=143)
    assert f"python train.py ckpt_path={last.relative_to(tmp_path)}" in output
    assert torch.load(last, weights_only=True)["epoch"] < 5


@pytest.mark.slow
def test_interrupted_and_continued_equals_never_interrupted(tmp_path):
    train(*RUN, f"hydra.run.dir={tmp_path}/whole", cwd=tmp_path)

    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    output = stopped(signal.SIGINT, last, code=130)
    stopped_at = torch.load(last, weights_only=True)["epoch"]
    assert stopped_at < 5, "the run was over before it was interrupted"
    command = re.search(r"python train\.py (ckpt_path=\S+)", output)
    assert command, output

    train(command[1], cwd=tmp_path)
    whole = torch.load(tmp_path / "whole/checkpoints/last.ckpt", weights_only=True)
    cut = torch.load(last, weights_only=True)
    assert whole["epoch"] == cut["epoch"] == 5
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, cut["state_dict"][key]), key
    assert len((tmp_path / "cut" / "metrics.csv").read_text().splitlines()) == 7
    assert {p.name for p in tmp_path.iterdir()} == {"whole", "cut"}
    seen = [
        json.loads((tmp_path / name / "summary.json").read_text())["images_by_size"]
        for name in ("whole", "cut")
    ]
    assert seen[0] == seen[1]
    assert list(seen[0]) == ["16x16", "32x32"]


@pytest.mark.slow
def test_two_processes_one_run(tmp_path):
    output = train(
        *RUN,
        *("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=2"),
        cwd=tmp_path,
        CVATTN_DATA=str(tmp_path / "none"),
    )
    (folder,) = (tmp_path / "outputs").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["processes"] == 2
    assert output.count("test accuracy") == 1
    batches = 1257 // 50
    assert summary["images"] == 2 * batches * 50
    # The same evaluation by one process: every image was counted once.
    import cvattn
    from cvattn.data import DigitsData

    network = cvattn.load(folder / "checkpoints" / "last.ckpt")
    data = DigitsData(batch_size=50, eval_batch_size=97, seed=0)
    data.setup()
    right = 0
    for images, labels in data.test_dataloader():
        with torch.no_grad():
            right += (network(images).argmax(-1) == labels).sum().item()
    assert summary["test"]["accuracy"] == pytest.approx(right / 360, abs=1e-6)


@pytest.mark.slow
def test_multirun_gives_every_job_a_folder(tmp_path):
    train(
        *("-m", "seed=1,2", "data=digits", "model=sagan", "model.widths=[4,8,5]"),
        *("trainer.fast_dev_run=true", "trainer.accelerator=cpu"),
        cwd=tmp_path,
    )
    summaries = sorted((tmp_path / "multirun").glob("*/*/summary.json"))
    assert [json.loads(path.read_text())["seed"] for path in summaries] == [1, 2]
    (table,) = (tmp_path / "multirun").glob("*/sweep.csv")
    assert table.read_text().startswith("run,seed,validation,")


@pytest.mark.slow
def test_a_mistake_is_one_clear_message(tmp_path):
    output = train("model=vti", cwd=tmp_path, code=2)
    there = ", ".join(sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml")))
    wanted = f"error: model=vti: no such choice; did you mean vit? Choices of model: {there}."
    assert output.strip() == wanted
    assert not (tmp_path / "outputs").exists()


def test_the_door_is_small():
    assert len((ROOT / "train.py").read_text().splitlines()) < 40
