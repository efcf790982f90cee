"""Pages that are made from something else: the API, the keys of conf/, the results, notebooks."""

import importlib
import inspect
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(Path(__file__).parent))

import tables  # noqa: E402

# In the order in which somebody meets them.
PACKAGES = (
    *("cvattn", "cvattn.blocks", "cvattn.maps", "cvattn.explorer", "cvattn.weights"),
    *(
        "cvattn.testing",
        "cvattn.cost",
        "cvattn.models",
        "cvattn.models.flow",
        "cvattn.core",
        "cvattn.core.masks",
    ),
    *("cvattn.core.local",),
    *("cvattn.core.positions", "cvattn.checkpoint", "cvattn.inference", "cvattn.data"),
    *("cvattn.quality", "cvattn.tasks", "cvattn.harness"),
)


def all_pages(docs: Path) -> None:
    """Write them, in place of what was there."""
    for name in ("api", "generated", "notebooks"):
        shutil.rmtree(docs / name, ignore_errors=True)
        (docs / name).mkdir()
    for name in PACKAGES:
        (docs / "api" / f"{name}.md").write_text(api_page(name))
    (docs / "api" / "index.md").write_text(api_index())
    (docs / "generated" / "keys.md").write_text(keys_page(ROOT / "conf"))
    for name, made in tables.all_tables(ROOT / "results"):
        (docs / "generated" / f"{name}.md").write_text(made)
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        shutil.copy(notebook, docs / "notebooks")


def public_names(package: str) -> list[str]:
    """What a user may import from it: ``__all__``, or the functions and classes that it defines."""
    module = importlib.import_module(package)
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == package
    ]


def api_page(package: str) -> str:
    """Every public name with its signature and docstring."""
    module = importlib.import_module(package)
    lines = [f"# {package}", "", "```{eval-rst}"]
    lines += [f".. automodule:: {package}", ""]
    for name in public_names(package):
        value = getattr(module, name)
        if inspect.ismodule(value):  # it has a page of its own
            continue
        kind = "class" if inspect.isclass(value) else "function" if callable(value) else "data"
        lines += [f".. auto{kind}:: {package}.{name}"]
        # What the package itself offers is indexed where its subpackage is described.
        again = package == "cvattn" and name not in ("load", "explore")
        lines += ["   :no-index:"] * again + ["   :members:"] * (kind == "class") + [""]
    return "\n".join([*lines, "```", ""])


def api_index() -> str:
    pages = "\n".join(PACKAGES)
    return f"# API\n\nEvery public name, package by package.\n\n```{{toctree}}\n\n{pages}\n```\n"


def keys_page(conf: Path) -> str:
    """A table of keys, values and comments for each file of the configuration."""
    parts = ["# Every key of `conf/`", ""]
    parts += ["Any of them can be set on the command line: `python train.py KEY=VALUE`.", ""]
    groups = sorted(folder for folder in conf.iterdir() if folder.is_dir())
    parts += ["## config.yaml", "", *_keys_table(conf / "config.yaml", "")]
    for group in groups:
        parts += [f"## {group.name}", ""]
        for file in sorted(group.glob("*.yaml")):
            parts += [f"### `{group.name}={file.stem}`", ""]
            said = _head_comment(file)
            parts += [said, ""] if said else []
            prefix = "" if _is_global(file) else group.name
            parts += _keys_table(file, prefix)
    return "\n".join(parts)


def _is_global(file: Path) -> bool:
    return "@package _global_" in file.read_text()


def _head_comment(file: Path) -> str:
    lines = []
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            break
        text = line.lstrip("# ").strip()
        if not text.startswith("@package"):
            lines.append(text)
    return " ".join(lines).split("contracts:")[0].strip()


def _keys_table(file: Path, prefix: str) -> list[str]:
    text = file.read_text()
    node = yaml.compose(text)
    lines = text.splitlines()
    rows = [
        f"| `{key}` | {_cell(value)} | {_comment(lines[line])} |"
        for key, value, line in _leaves(node, prefix)
        if key.split(".")[0] not in ("defaults", "hydra")
    ]
    if not rows:
        return ["Chooses other files only.", ""]
    return ["| key | value | |", "|---|---|---|", *rows, ""]


def _leaves(node: yaml.Node | None, path: str) -> Iterator[tuple[str, str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _leaves(value, f"{path}.{key.value}" if path else key.value)
    elif node is not None:
        start, end = node.start_mark, node.end_mark
        yield path, start.buffer[start.pointer : end.pointer].strip(), start.line


def _cell(text: str) -> str:
    text = " ".join(text.split())
    return f"`{text}`".replace("|", "\\|") if text else ""


def _comment(line: str) -> str:
    text = line.partition(" # ")[2].strip()
    return text.replace("|", "\\|").replace("<", "&lt;")
