"""What a run says while it goes and leaves behind: rates, profiles, lines in a log file, names."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from runs import TINY

from cvattn.harness.reporting import pictures, progress
from cvattn.harness.reporting.csv_log import read_metrics


def test_the_learning_rate_is_in_the_log_and_a_monitors_values_too(run, tmp_path, capsys, caplog):
    monitor = "pytorch_lightning.callbacks.LearningRateMonitor"
    run(
        [
            *TINY,
            "trainer.max_epochs=3",
            "trainer.log_every_n_steps=1",
            f"+callbacks.rates._target_={monitor}",
            "+trainer.profiler=simple",
        ]
    )
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    for row in rows.values():
        # Lightning's own, of each group of parameters, in the last step; ours is the next's.
        named = [value for key, value in row.items() if key.startswith("lr-")]
        assert len(named) > 1
        assert row["lr"] < max(named)
    assert rows[0]["lr"] > rows[1]["lr"] > rows[2]["lr"] >= 0
    out, err = capsys.readouterr()
    said = out + err + caplog.text  # it is a notice of Lightning's logger
    assert "FIT Profiler Report" in said
    assert "run_training_epoch" in said


def test_a_log_file_hears_from_a_long_epoch(run, monkeypatch, capsys):
    monkeypatch.setattr(progress.ProgressLines, "EVERY", 0.0)
    run([*TINY, "trainer.max_epochs=2"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    within = [line for line in lines if "step" in line]
    assert [re.search(r"step (\d)/6", line).group(1) for line in within] == ["1", "2", "4", "5"]
    assert len(lines) == 6
    assert all(re.search(r"loss \d\.\d+  [\d,]+ images/s", line) for line in within)


def test_a_short_epoch_has_one_line(run, capsys):
    run(TINY)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 1


NAMES = ["\x1b[35m first", "Ba$$in", "$a_b^{", "<b>\\x", "猫 🐈", "a" * 200, "\x1b[31m%s", "=1+1"]


@pytest.mark.slow
def test_names_of_every_kind_do_not_cost_a_run_its_summary(run, tmp_path, capsys):
    for part, count in {"train": 3, "test": 2}.items():
        for label, name in enumerate(NAMES):
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.full((9, 9, 3), 30 * label + i, np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
            hidden = folder / ".ipynb_checkpoints"
            hidden.mkdir()
            Image.fromarray(pixels).save(hidden / "0.png")
    settings = [text for text in TINY if not text.startswith("data=")]
    run([*settings, "data=folder", f"data.root={tmp_path / 'data'}", "data.image_size=16"])
    out, err = capsys.readouterr()
    assert "not drawn" not in out + err
    assert "\x1b" not in out + err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["test"]
    assert {"curves.png", "attention.png"} <= {p.name for p in (tmp_path / "run").iterdir()}


def test_no_figure_is_cut_where_there_is_little_room(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    run(TINY)
    assert "…" not in capsys.readouterr().out


def test_pictures_that_fail_cost_no_summary(run, tmp_path, capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no\nfonts")

    monkeypatch.setattr(pictures.Figure, "savefig", fail)
    run(TINY)
    err = capsys.readouterr().err
    for name in ("curves.png", "attention.png"):
        assert f"note: {name} was not drawn: RuntimeError: no fonts\n" in err
        assert not (tmp_path / "run" / name).exists()
    assert (tmp_path / "run" / "summary.json").is_file()
