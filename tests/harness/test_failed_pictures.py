"""A picture that cannot be drawn costs the picture, and not what the run has found."""

import json

import pytest
from runs import TINY

from cvattn.harness.reporting import run_pictures


@pytest.mark.parametrize("failing", ["curves", "attention"])
def test_a_run_goes_on_to_its_summary(run, tmp_path, monkeypatch, capsys, failing):
    def fail(*args, **kwargs):
        raise RuntimeError("no font has this sign")

    monkeypatch.setattr(run_pictures, f"draw_{failing}", fail)
    run(TINY)
    assert "accuracy" in json.loads((tmp_path / "run" / "summary.json").read_text())["test"]
    names = {path.stem for path in (tmp_path / "run").glob("*.png")}
    assert names == {"curves", "attention"} - {failing}
    said = "".join(capsys.readouterr())
    assert f"{failing}.png" in said
    assert "no font has this sign" in said
    assert "Traceback" not in said
