"""Sweeps: what is refused before anything runs, real searches and jobs, the table at the end."""

import csv
import importlib.metadata
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from runs import CONF, TINY, start, train

from cvattn.harness import ConfigError, check_command_line
from cvattn.harness.reporting.csv_log import read_metrics
from cvattn.harness.reporting.sweep_table import show_table, sweep_rows

RANGE = "recipe.optimizer.lr=tag(log, interval(0.04, 0.64))"


def needs(package: str) -> None:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs {package}")


@pytest.mark.parametrize("group", ["sweep=optuna", "launcher=slurm", "launcher=local"])
def test_a_plugin_that_is_not_installed_says_how(group, monkeypatch):
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("cvattn.harness.config.command_line.version", missing)
    with pytest.raises(ConfigError, match=rf"{group} needs hydra-\w+-\w+: pip install"):
        check_command_line([group, RANGE], CONF)


def test_a_search_needs_something_to_search():
    needs("hydra-optuna-sweeper")
    with pytest.raises(ConfigError, match="sweep=optuna: nothing to search; give a range"):
        check_command_line(["sweep=optuna", "data=digits"], CONF)


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("hydra-optuna-sweeper", ["sweep=optuna", RANGE, "data=digits"]),
        ("hydra-submitit-launcher", ["launcher=slurm", "seed=1,2", "data=digits"]),
    ],
)
def test_what_is_for_several_runs_is_a_multirun(package, arguments):
    needs(package)
    assert check_command_line(arguments, CONF) == [*arguments, "--multirun"]


@pytest.mark.parametrize(("mode", "seeds"), [("max", ["2", "3", "1"]), ("min", ["1", "3", "2"])])
def test_the_table_has_what_differs_and_the_best_first(tmp_path, mode, seeds):
    for number, (seed, accuracy) in enumerate([(1, 0.5), (2, 0.75), (3, 0.625)]):
        folder = tmp_path / f"{number}_sagan_digits"
        folder.mkdir()
        summary = {
            "overrides": ["data=digits", f"seed={seed}"],
            "criterion": {"metric": "val/accuracy", "mode": mode, "best": accuracy},
            "minutes": 1.5,
            "pflop": 0.25,
        }
        (folder / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "3_sagan_digits").mkdir()  # one that did not finish
    rows = sweep_rows(tmp_path)
    assert [row["seed"] for row in rows] == seeds
    assert list(rows[0]) == ["run", "seed", "validation", "minutes", "PFLOP"]
    best = ["1_sagan_digits", "2", "0.7500"] if mode == "max" else ["0_sagan_digits", "1", "0.5000"]
    assert list(rows[0].values()) == [*best, "1.5", "0.2500"]
    assert sweep_rows(tmp_path / "nowhere") == []


def test_lists_are_shown_as_they_were_given(tmp_path, capsys):
    for number, names in enumerate(["[default]", "[default,ema]"]):
        folder = tmp_path / f"{number}_sagan_digits"
        folder.mkdir()
        summary = {
            "overrides": [f"callbacks={names}"],
            "criterion": {"metric": "val/accuracy", "mode": "max", "best": 0.5},
            "minutes": 1.5,
            "pflop": 0.25,
        }
        (folder / "summary.json").write_text(json.dumps(summary))
    show_table(tmp_path)
    assert "[default,ema]" in capsys.readouterr().out


@pytest.mark.slow
def test_a_job_that_fails_does_not_take_the_others_with_it(tmp_path):
    """Two cannot be built, one becomes NaN, the last one trains."""
    output = train(
        *(*TINY, "-m", "model.attention_after=[stage9],[stage1]", "recipe.optimizer.lr=1e30,0.2"),
        cwd=tmp_path,
        code=1,
    )
    (folder,) = (tmp_path / "multirun").iterdir()
    errors = {path.parent.name[0]: path.read_text() for path in folder.glob("*/error.txt")}
    assert sorted(errors) == ["0", "1", "2"]
    assert "stage9" in errors["0"]
    assert "the loss became nan" in errors["2"]
    rows = list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))
    assert [row["run"][0] for row in rows] == ["3"]
    end = output[output.index("sweep.csv") :]
    assert "2_sagan_digits failed: the loss became nan" in end
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_sweep_that_is_interrupted_shows_what_it_finished(tmp_path):
    process = start(*TINY, "-m", "trainer.max_epochs=1,1000", cwd=tmp_path)
    deadline = time.time() + 120
    while not list(tmp_path.glob("multirun/*/1_*/checkpoints/last.ckpt")):
        assert time.time() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    (table,) = tmp_path.glob("multirun/*/sweep.csv")
    assert [row["run"][0] for row in csv.DictReader(table.read_text().splitlines())] == ["0"]
    assert re.search(r"ckpt_path=multirun/\S+/1_\S+.*The table is in multirun/", output, re.DOTALL)


@pytest.mark.slow
def test_optuna_maximises_the_best_validation_accuracy(tmp_path):
    needs("hydra-optuna-sweeper")
    output = train(*TINY, "sweep=optuna", "hydra.sweeper.n_trials=3", RANGE, cwd=tmp_path)
    (table,) = tmp_path.glob("multirun/*/sweep.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == 3
    assert len({row["recipe.optimizer.lr"] for row in rows}) == 3
    assert all(0.04 <= float(row["recipe.optimizer.lr"]) <= 0.64 for row in rows)
    found = OmegaConf.load(table.parent / "optimization_results.yaml")
    assert float(rows[0]["validation"]) == pytest.approx(found.best_value, abs=1e-4)
    assert "sweep.csv" in output


@pytest.mark.slow
def test_submitted_jobs_train_in_processes_of_their_own(tmp_path):
    needs("hydra-submitit-launcher")
    train(*TINY, "launcher=local", "seed=1,2", cwd=tmp_path)
    summaries = sorted((tmp_path / "multirun").glob("*/*/summary.json"))
    assert [json.loads(path.read_text())["seed"] for path in summaries] == [1, 2]
    assert len(list((tmp_path / "multirun").glob("*/sweep.csv"))) == 1


@pytest.mark.slow
def test_the_ablation_is_a_multirun_of_its_three_forms(tmp_path):
    tiny = [a for a in TINY if not a.startswith("model=")]
    train("-m", "experiment=attention_ablation", *tiny, "seed=5", cwd=tmp_path)
    (table,) = tmp_path.glob("multirun/*/sweep.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert {row["model.attention"] for row in rows} == {"common", "frozen", "convolution"}
    gammas = {
        path.parent.name[0]: json.loads(path.read_text())["gamma"]
        for path in table.parent.glob("*/summary.json")
    }
    assert gammas["0"]["attention.stage2"] != 0.0
    assert gammas["1"]["attention.stage2"] == 0.0


@pytest.mark.slow
def test_a_submitted_job_goes_back_into_the_queue_and_on(tmp_path):
    """As SLURM asks for it with submitit, whose signal comes to the process that trains."""
    needs("hydra-submitit-launcher")
    more = ["callbacks.last.every_minutes=0", "trainer.max_epochs=40"]
    process = start(*TINY, *more, "launcher=local", "seed=1", cwd=tmp_path)
    try:
        until = time.monotonic() + 120
        while not list(tmp_path.glob("multirun/*/*/checkpoints/best.ckpt")):
            assert time.monotonic() < until, "no checkpoint"
            time.sleep(0.05)
        (job,) = [pid for pid, words in processes_of(tmp_path) if "submitit.core._submit" in words]
        os.kill(job, signal.SIGUSR2)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, output
    (folder,) = (path.parent for path in tmp_path.glob("multirun/*/*/summary.json"))
    assert json.loads((folder / "summary.json").read_text())["epochs"] == 40
    assert len(read_metrics(folder / "metrics.csv")) == 40
    (said,) = (path.read_text() for path in folder.parent.glob(".submitit/*/*_log.out"))
    assert said.count("training ─") == 1
    assert len(re.findall(r"continuing (in|after) epoch", said)) == 1


def processes_of(folder):
    """(process id, words of its command) of those whose command names the folder."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().split("\0")
        except OSError:  # it has just ended
            continue
        if any(str(folder) in word for word in words):
            yield int(path.parent.name), words
