"""What the commands share: errors in one line, reading arguments."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from cvattn.checkpoint import BUNDLED
from cvattn.system import did_you_mean, imported, printable

CHECKPOINT_HELP = f"a .ckpt file of a run (checkpoints/last.ckpt), or {' or '.join(BUNDLED)}"


class CommandError(Exception):
    """Something that the user can fix; ``main`` shows it as one line and leaves with ``code``."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


def add_checkpoint(parser: argparse.ArgumentParser, more: str = "") -> None:
    """The positional ``checkpoint``, and :func:`add_network`.

    Args:
        more: what else may be named.
    """
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP + more)
    add_network(parser)


def add_network(parser: argparse.ArgumentParser) -> None:
    """``--network``, which :func:`own_network` imports."""
    parser.add_argument(
        "--network",
        metavar="MODULE:NAME",
        help="the class or function that made a network of your own, such as my_net:Net",
    )


def own_network(args: argparse.Namespace) -> Any:
    """What ``--network`` names, imported; None if it is not given.

    Raises:
        CommandError: there is none.
    """
    try:
        return None if args.network is None else imported(args.network)
    except ValueError as error:
        raise CommandError(f"--network {error}") from error


def shown(name: str | os.PathLike[str]) -> str:
    """A path or a class's name that can be printed, whatever is in it."""
    return printable(os.fspath(name))


def folder_beside(checkpoint: Path, name: str) -> Path:
    """A folder of that name in the run's folder, or beside a file that lies in no run."""
    parent = checkpoint.absolute().parent
    return (parent.parent if parent.name == "checkpoints" else parent) / name


class Parser(argparse.ArgumentParser):
    """Options may stand anywhere among the arguments; mistakes are CommandErrors."""

    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message} (cvattn {self.prog.split()[-1]} --help says more)")

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        known, unknown = self.parse_known_intermixed_args(list(arguments))
        if unknown:
            options = [text for text in self._option_string_actions if text.startswith("--")]
            raise CommandError(f"unknown option {unknown[0]!r}{did_you_mean(unknown[0], options)}")
        return known
