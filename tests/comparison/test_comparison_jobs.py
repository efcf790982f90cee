"""Lists of runs: their order, their names, and what is no list."""

from pathlib import Path

import pytest
import yaml

from cvattn.comparison.jobs import Job, read_jobs
from cvattn.harness import ConfigError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


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
    assert Job("a/b [c]: d=0.5", (), 1).folder.startswith("a_b_c_d=0.5_seed1_")


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
    with pytest.raises(ConfigError, match=said) as refused:
        read_jobs(file)
    assert str(refused.value).startswith(str(file))
