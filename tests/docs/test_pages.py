"""What the README and the pages say can be pasted, and leads somewhere."""

import importlib
import json
import re
import shlex
import signal
import subprocess
import sys
from itertools import dropwhile
from pathlib import Path

import pytest
from fenced import DOCS, PAGES, ROOT, commands, fences
from torch.distributed.run import get_args_parser

from cvattn.cli import COMMANDS
from cvattn.comparison.jobs import read_jobs
from cvattn.harness import check_command_line

NAMES = [page.name for page in PAGES]
MOST_LINES = 120


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_LINES


@pytest.mark.sweep(8)
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_exist(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "my_conf" / "experiment"  # as the pages name them
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# @package _global_\nseed: 3\n")
    (tmp_path / "my_net.py").write_text(MY_NET)
    for words in commands(page):
        with monkeypatch.context() as patch:
            check_command(words, patch)


def check_command(words, patch):
    program, *rest = dropwhile(lambda word: re.match("[A-Z_]+=", word), words)
    for word in words[: -1 - len(rest)]:
        patch.setenv(*word.split("=", 1))
    # One of several processes asks nobody.
    patch.setenv("CVATTN_DECISIONS", json.dumps(DECIDED))
    if rest[:1] == ["train.py"]:
        check_training(rest[1:])
    elif program == "torchrun":
        told = get_args_parser().parse_args(rest)
        nodes, here = int(told.nnodes), int(told.nproc_per_node)
        started = {"RUN_ID": "none", "USE_AGENT_STORE": "True"}
        for name, value in started.items():
            patch.setenv(f"TORCHELASTIC_{name}", value)
        patch.setenv("WORLD_SIZE", str(nodes * here))
        patch.setenv("LOCAL_WORLD_SIZE", str(here))
        patch.setenv("RANK", str(here * told.node_rank))
        assert told.master_addr, words
        assert (ROOT / told.training_script).is_file()
        check_training(told.training_script_args)
    elif rest[:3] == ["-m", "cvattn", "train"]:
        check_training(rest[3:])
    elif rest[:2] == ["-m", "cvattn"]:
        assert rest[2] in COMMANDS, words
        importlib.import_module(f"cvattn.cli.{rest[2]}")._parser().read(rest[3:])
    elif rest[:1] and rest[0].endswith((".py", ".ci/run", ".ci/machines")):
        assert (ROOT / rest[0]).is_file(), words
    else:
        assert Path(program).name in KNOWN, words


MY_NET = """from torch import nn


def net(num_classes: int, after: str = "layer3") -> nn.Module: ...
"""
KNOWN = {"python", "python3", "pip", "pre-commit", "source"}
DECIDED = {"start": ["the beginning", ""], "run folder": ["outputs/mine", ""]}


def test_the_script_for_slurm_asks_for_what_the_trainer_is_told(tmp_path, monkeypatch):
    (script,) = fences(DOCS / "cluster.md", "sh")
    file = tmp_path / "job.sh"
    file.write_text(script)
    subprocess.run(["bash", "-n", file], check=True)
    asked = dict(
        re.findall(r"--([a-z-]+)=(\S+)", "".join(re.findall(r"^#SBATCH.*\n", script, re.M)))
    )
    nodes, tasks = int(asked["nodes"]), int(asked["ntasks-per-node"])
    assert asked["signal"].startswith("USR1@")
    assert f"$? -eq {128 + signal.SIGUSR1} " in script
    (line,) = re.findall(r"^srun .*$", script.replace("\\\n", " "), re.M)
    environment = {
        "SLURM_NTASKS": nodes * tasks,
        "SLURM_NTASKS_PER_NODE": tasks,
        "SLURM_NNODES": nodes,
        "SLURM_PROCID": 5,
        "SLURM_LOCALID": 1,
        "SLURM_NODEID": 1,
        "SLURM_STEP_ID": 0,
        "SLURM_JOB_NAME": "job.sh",
        "CVATTN_DECISIONS": json.dumps(DECIDED),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)
    check_training(words[words.index("train.py") + 1 :])


def test_the_list_of_runs_that_is_shown_can_be_compared(tmp_path):
    (text,) = fences(DOCS / "compare.md", "yaml")
    (tmp_path / "runs.yaml").write_text(text)
    jobs = read_jobs(tmp_path / "runs.yaml")
    assert len(jobs) == text.count("overrides") * 3
    for job in jobs:
        check_training([*job.overrides, f"seed={job.seed}"])


def check_training(words):
    """Composed as on the command line; what continues a run needs one that is there."""
    plugins = ("sweep=", "launcher=", "hydra.launcher", "hydra.sweeper")
    if any(word.startswith(("ckpt_path=", *plugins)) for word in words):
        return
    assert check_command_line(words, ROOT / "conf")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_and_pictures_are_there(page):
    links = re.findall(r"\]\(([^)#\s]+)\)", page.read_text())
    for link in links:
        assert "://" in link or (page.parent / link).exists(), link
    for target in re.findall(r"\{doc\}`([^`]+)`", page.read_text()):
        made = target.startswith(("generated/", "notebooks/", "api/"))
        assert made or (page.parent / f"{target}.md").exists(), target


@pytest.mark.parametrize("notebook", sorted(ROOT.glob("notebooks/*.ipynb")), ids=lambda p: p.name)
def test_a_notebook_says_nothing_of_where_it_was_run(notebook):
    assert "site-packages" not in notebook.read_text()


def test_every_public_name_is_in_the_api():
    sys.path.insert(0, str(DOCS))
    try:
        import generate
    finally:
        sys.path.pop(0)
    pages = {package: generate.public_names(package) for package in generate.PACKAGES}
    documented = {f"{package}.{name}" for package, names in pages.items() for name in names}
    frozen = (ROOT / "tests" / "test_import.py").read_text()
    packages = re.findall(r'^    "(cvattn[\w.]*)": ', frozen, re.MULTILINE)
    assert packages
    for package in packages:
        module = importlib.import_module(package)
        if package in ("cvattn.cli", "cvattn.system"):  # commands, and tools of ours
            continue
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if not hasattr(value, "__path__"):  # a package has a page of its own
                assert f"{package}.{name}" in documented
                assert value.__doc__, f"{package}.{name}"
