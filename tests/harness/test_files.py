"""What cannot be written leaves what was there; a log that cannot be written ends nothing."""

import json
import os
import resource
from contextlib import contextmanager

import pytest
import torch
from runs import TINY

from cvattn.harness import CSVLog
from cvattn.harness.checkpoints import WholeCheckpoints
from cvattn.harness.reporting.summary import read_summary, write_summary
from cvattn.system.files import CannotWrite, remove_leftovers, whole_file, write_text


@contextmanager
def no_file_longer_than(size):
    """As a disk that is full: the system refuses the write in the middle of the file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_checkpoint_whole(tmp_path):
    path, saver = tmp_path / "last.ckpt", WholeCheckpoints()
    saver.save_checkpoint({"weight": torch.arange(7)}, path)
    before = path.read_bytes()
    with (
        no_file_longer_than(5000),
        pytest.raises(CannotWrite, match=r"cannot write .*last\.ckpt: File too large\. What was"),
    ):
        saver.save_checkpoint({"weight": torch.arange(5003)}, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.equal(torch.load(path, weights_only=True)["weight"], torch.arange(7))


def test_nothing_is_written_into_the_temporary_folder(run, tmp_path, monkeypatch):
    import tempfile

    def refuse(*args, **kwargs):
        raise AssertionError("a temporary file elsewhere")

    for name in ("mkstemp", "mkdtemp", "NamedTemporaryFile", "TemporaryFile"):
        monkeypatch.setattr(tempfile, name, refuse)
    run(TINY)
    left = [p.name for p in (tmp_path / "run").rglob("*") if "partial" in p.name]
    assert left == []


@pytest.mark.slow
def test_a_run_on_a_full_disk_ends_with_one_line_and_a_whole_checkpoint(run, tmp_path, capsys):
    run([*TINY, "trainer.max_epochs=2"])
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    with (
        no_file_longer_than(len(before) // 2),
        pytest.raises(CannotWrite, match=r"cannot write .*\.ckpt: File too large"),
    ):
        run([f"ckpt_path={last}", "trainer.max_epochs=3"])
    assert last.read_bytes() == before
    assert "python train.py ckpt_path=" in capsys.readouterr().out


def test_a_log_that_cannot_be_written_is_said_once(tmp_path, capsys):
    log = CSVLog(str(tmp_path / "metrics.csv"))
    log.log_metrics({"epoch": 0, "val/loss": 1.0}, step=1)
    log.save()
    before = log.path.read_bytes()
    with no_file_longer_than(3):
        for epoch in (1, 2):
            log.log_metrics({"epoch": epoch, "val/loss": 1.0}, step=epoch)
            log.save()
    assert capsys.readouterr().err.count("Training goes on") == 1
    assert log.path.read_bytes() == before
    log.save()
    assert len(log.path.read_text().splitlines()) == 4


def test_what_killed_writes_left_is_removed(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in (".summary.json.partial", "checkpoints/.last.ckpt.partial"):
        (tmp_path / name).write_text("half")
    (tmp_path / "notes.partial").write_text("the user's")
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["checkpoints", "notes.partial"]


def test_a_file_that_is_stopped_in_the_middle_is_not_there(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "first")

    def stopped():
        with whole_file(path) as file:
            file.write(b"sec")
            raise SystemExit(130)

    with pytest.raises(SystemExit):
        stopped()
    assert (path.read_text(), os.listdir(tmp_path)) == ("first", ["a.txt"])


@pytest.mark.parametrize("content", ["", "{", '{"test": {"accuracy": 0.', "null", "[]"])
def test_a_summary_that_is_not_whole_is_none(tmp_path, content):
    (tmp_path / "summary.json").write_text(content)
    assert read_summary(tmp_path / "summary.json") is None


def test_a_summary_is_json_whatever_was_measured(tmp_path):
    path = tmp_path / "summary.json"
    write_summary(path, {"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": -float("inf")}})
    assert json.loads(path.read_text()) == {"a": None, "b": [1.5, None], "c": {"d": None}}
