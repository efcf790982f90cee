"""``cvattn cache``: the decoded images that are kept on this machine, and removing them."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cvattn.cli.common import CommandError, Parser, shown
from cvattn.data.cache import cache_folder
from cvattn.data.kept import Kept, kept_files, remove
from cvattn.system import did_you_mean


def run(arguments: Sequence[str]) -> int:
    """The command: the list of files, or what was removed."""
    args = _parser().read(arguments)
    folder = cache_folder()
    if folder is None:
        print("CVATTN_CACHE says that nothing is kept")
        return 0
    found = kept_files()
    if args.clean is not None:
        _remove(found, args.clean)
    elif found:
        _show(found)
        print(f"{shown(folder)}: {_size(sum(kept.size for kept in found))}")
    else:
        print(f"{shown(folder)}: nothing is kept")
    return 0


def _remove(found: Sequence[Kept], names: Sequence[str]) -> None:
    by_name = {kept.path.stem: kept for kept in found}
    for name in names:
        if name not in by_name:
            raise CommandError(f"nothing of the name {name} is kept{did_you_mean(name, by_name)}")
    chosen = [by_name[name] for name in names] if names else found
    for kept in chosen:
        try:
            remove(kept)
        except OSError as error:
            raise CommandError(f"cannot remove {shown(kept.path)}: {error.strerror}") from error
        print(f"removed {shown(kept.path)} ({_size(kept.size)})")
    if not chosen:
        print("nothing is kept")


def _show(found: Sequence[Kept]) -> None:
    table = Table(box=None)
    for column in ("name", "size", "last used"):  # a name is whole, to be pasted
        table.add_column(column, justify="right" if column == "size" else "left", no_wrap=True)
    table.add_column("decoded from", overflow="fold")
    for kept in found:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(kept.used))
        texts = (
            shown(kept.path.stem),
            _size(kept.size),
            used,
            shown(kept.source or "not recorded"),
        )
        table.add_row(*map(Text, texts))
    Console(highlight=False).print(table)


def _size(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _parser() -> Parser:
    parser = Parser(
        prog="cvattn cache",
        description="What is kept of decoded images: data.hold=mapped, and CIFAR's. The folder is "
        "~/.cache/cvattn, or what CVATTN_CACHE names. All of it is made anew when it is needed.",
    )
    parser.add_argument(
        "--clean",
        nargs="*",
        metavar="NAME",
        help="remove these, or all if none is named; a run that reads one goes on",
    )
    return parser
