"""``cvattn compare`` with real training: interrupted, continued, and what it leaves."""

import csv
import os
import signal
import subprocess
import sys
import time

import pytest

from cvattn.cli import compare, main
from cvattn.comparison.compared import Comparison

TINY = [
    *("model=sagan", "data=digits", "model.widths=[4,8,5]", "trainer.precision=32-true"),
    *("trainer.accelerator=cpu", "trainer.limit_train_batches=3", "trainer.max_epochs=8"),
    *("trainer.limit_val_batches=1", "trainer.limit_test_batches=1"),
]
ARMS = ["compare", *TINY, "model.attention=common,none", "--seeds", "1"]
ONE = ["--only", "common"]  # a run takes ten seconds: the other arm is left to do


def table(path):
    with path.open(newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.mark.slow
def test_stopped_and_started_again_each_run_is_written_down_once(tmp_path, monkeypatch, capfd):
    results = tmp_path / "the [old] results" / "tiny.csv"
    there = ["-o", str(results), "--folder", "the [old] queue"]
    command = [sys.executable, "-m", "cvattn", *ARMS, *ONE, *there]
    options = {"cwd": tmp_path, "env": {**os.environ, "CVATTN_OFFLINE": "1"}, "text": True}

    # Shells let what they start in the background ignore Ctrl-C, and that is inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, **options)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "the [old] queue").glob("common_*/checkpoints/last.ckpt")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "The comparison goes on with\n  python -m cvattn compare model=sagan" in said
    assert not results.exists(), "the run was over before it was interrupted"

    monkeypatch.chdir(tmp_path)
    assert main([*ARMS, *ONE, *there]) == 0
    said = capfd.readouterr().out
    assert "continuing" in said
    assert "Everything is in the [old] results/: tiny.csv, tiny_compared.png, tiny_cur" in said
    (row,) = table(results)
    words = " ".join(TINY).replace("model.widths=[4,8,5]", "'model.widths=[4,8,5]'")
    assert row["command"] == f"python train.py {words} model.attention=common seed=0"
    assert (row["run"], row["data"], row["epochs"]) == ("common", "digits", "8")
    assert (row["criterion"], row["mode"]) == ("val/accuracy", "max")
    assert 0 < float(row["test_accuracy"]) <= 1
    assert 0 < float(row["val_accuracy_gamma_0"]) <= 1
    assert row["gamma"]
    epochs = [(each["run"], int(each["epoch"])) for each in table(results.with_stem("tiny_curves"))]
    assert epochs == [("common", epoch) for epoch in range(1, 9)]
    for name in ("tiny.png", "tiny_compared.png"):
        assert (results.parent / name).stat().st_size > 5000

    # More seeds are added to what is there.
    assert main([*ARMS[:-1], "2", *there, "--list"]) == 0
    states = [line.split("  ")[:2] for line in capfd.readouterr().out.splitlines()]
    left = [["to do", "none"], ["to do", "common"], ["to do", "none"]]
    assert states == [["done", "common"], *left]
    assert table(results) == [row]


@pytest.mark.parametrize(("epochs", "pictures"), [(1, []), (2, ["runs.png"])])
def test_one_epoch_is_no_curve(tmp_path, epochs, pictures):
    row = {"run": "a", "seed": "0", "val_accuracy": "0.7", "trained_on_val": "False"}
    lines = [f"a,0,{epoch},0.5,0.7" for epoch in range(1, epochs + 1)]
    curves = tmp_path / "runs_curves.csv"
    curves.write_text("\n".join(["run,seed,epoch,train/loss,val/accuracy", *lines]))
    files = compare._draw_curves([Comparison("a", [row])], tmp_path / "runs.csv")
    assert files == ["runs_curves.csv", *pictures]
    assert [path.name for path in tmp_path.glob("*.png")] == pictures
