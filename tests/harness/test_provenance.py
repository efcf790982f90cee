"""The commit of a run: "+changes" where something differs that the run could depend on."""

import subprocess

import pytest

import cvattn
from cvattn.harness import provenance


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository of the same shape as ours, with one commit."""
    for name in ("train.py", "results/cifar10.csv", "cvattn/__init__.py", "cvattn/results/code.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("as committed\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    monkeypatch.setattr(cvattn, "__file__", str(tmp_path / "cvattn" / "__init__.py"))
    return tmp_path


def test_rows_that_earlier_runs_left_are_no_difference(checkout):
    (checkout / "results/cifar10.csv").write_text("one row more\n")
    assert len(provenance.commit()) == 40


@pytest.mark.parametrize("name", ["train.py", "cvattn/results/code.py"])
def test_changed_code_is_a_difference(checkout, name):
    (checkout / name).write_text("changed\n")
    assert provenance.commit().endswith("+changes")
