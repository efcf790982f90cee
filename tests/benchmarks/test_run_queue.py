"""The queue of training runs: order, what is written down, and going on after Ctrl-C."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from means import means_table  # noqa: E402
from queue_jobs import Job, ListError, read_jobs  # noqa: E402

TINY = [
    *("model=sagan", "data=digits", "model.widths=[4,8,5]", "trainer.precision=32-true"),
    *("trainer.limit_train_batches=3", "trainer.max_epochs=25"),
]


def write_list(path: Path, **named) -> Path:
    path.write_text(yaml.safe_dump(named, sort_keys=False))
    return path


def test_first_seeds_first(tmp_path):
    first = {"overrides": ["model=sagan"], "seeds": [3, 5]}
    second = {"overrides": ["model=vit", "data.root=a b"], "seeds": [7]}
    jobs = read_jobs(write_list(tmp_path / "list.yaml", one=first, two=second))
    assert [(job.run, job.seed) for job in jobs] == [("one", 3), ("two", 7), ("one", 5)]
    assert jobs[1].command == "python train.py model=vit 'data.root=a b' seed=7"
    assert len({job.folder for job in jobs}) == 3
    other = Job("one", ("model=vit",), 3)
    assert other.folder != jobs[0].folder  # other overrides, another folder


def test_the_list_of_the_readme_can_be_read():
    jobs = read_jobs(BENCHMARKS / "cifar10.yaml")
    assert len(jobs) == len({job.key for job in jobs}) >= 10


def test_fine_tuning_starts_from_the_run_before_it():
    first, *others = read_jobs(BENCHMARKS / "finetuning.yaml")
    start = f"model.pretrained=outputs/queue/{first.folder}/checkpoints/last.ckpt"
    assert [job.run for job in others if start in job.overrides] == [
        "with_attention",
        "without_attention",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        ("a: [", "cannot be read"),
        ("\xff", "expected names of runs"),
        ("", "expected names of runs"),
        ("one: 3", "one has 3, expected overrides and seeds"),
        ("one: {overrides: [a=b]}", r"one has \['overrides'\], expected"),
        ("one: {overrides: model=vit, seeds: [1]}", "one.overrides is 'model=vit', expected a"),
        ("one: {overrides: [], seeds: 1}", "one.seeds is 1, expected a list of int"),
        ("one: {overrides: [], seeds: [true]}", r"one.seeds is \[True\], expected a list of int"),
        ("one: {overrides: [], seeds: []}", "one at least"),
        ("one: {overrides: [], seeds: [2, 2]}", "expected different ones"),
    ],
)
def test_what_is_no_list_is_refused_by_name(tmp_path, text, said):
    file = tmp_path / "list.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ListError, match=said) as refused:
        read_jobs(file)
    assert str(refused.value).startswith(str(file))


def test_means_come_with_their_intervals():
    common = {"minutes": "2", "pflop": "0.1", "test_accuracy_views": "", "val_accuracy": "0.5"}
    accuracies = [0.90, 0.91, 0.92, 0.91, 0.91]
    rows = [
        {"run": "a", "test_accuracy": str(x), "trained_on_val": "True"} | common for x in accuracies
    ]
    rows.append({"run": "b", "test_accuracy": "0.5", "trained_on_val": "False"} | common)
    table = means_table(rows)
    cells = [list(column.cells) for column in table.columns]
    # Of 5 values with a standard deviation of 0.7071: 2.776 * 0.7071 / sqrt(5) = 0.878.
    assert cells[1] == ["5", "1"]
    assert cells[2] == ["91.00 (90.12 to 91.88)", "50.00"]
    assert cells[4] == ["", "50.00"]  # what was trained on says nothing


@pytest.mark.slow
def test_stopped_and_started_again_each_run_is_written_down_once(tmp_path):
    named = {
        "with": {"overrides": TINY, "seeds": [1]},
        "without": {"overrides": [*TINY, "model.attention=none"], "seeds": [1]},
    }
    file = write_list(tmp_path / "queue.yaml", **named)
    results, folder = tmp_path / "results" / "queue.csv", tmp_path / "the [old] queue"
    command = [sys.executable, str(BENCHMARKS / "run_queue.py"), str(file)]
    command += ["--output", str(results), "--folder", str(folder)]
    options = {"cwd": tmp_path, "env": {**os.environ, "CVATTN_OFFLINE": "1"}}

    # Shells let what they start in the background ignore Ctrl-C, and that is inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, start_new_session=True, **options)
    last = folder / read_jobs(file)[0].folder / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) != 0
    assert not results.exists(), "the run was over before it was interrupted"

    for _ in range(2):  # the second time there is nothing to do
        subprocess.run(command, check=True, **options)
        with results.open(newline="") as opened:
            rows = list(csv.DictReader(opened))
        assert [row["run"] for row in rows] == ["with", "without"]
    assert {row["epochs"] for row in rows} == {"25"}
    assert rows[0]["command"] == f"python train.py {' '.join(TINY)} seed=1".replace(
        "model.widths=[4,8,5]", "'model.widths=[4,8,5]'"
    )
    assert 0 < float(rows[0]["test_accuracy"]) <= 1
    assert rows[0]["gamma"]
    assert not rows[1]["gamma"]
    assert 0 < float(rows[0]["val_accuracy_gamma_0"]) <= 1
    with (tmp_path / "results" / "queue_curves.csv").open(newline="") as opened:
        epochs = [(row["run"], int(row["epoch"])) for row in csv.DictReader(opened)]
    assert epochs == [(run, epoch) for run in named for epoch in range(1, 26)]
    assert (tmp_path / "results" / "queue.png").stat().st_size > 5000
