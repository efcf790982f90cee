"""Arguments that several commands take: images, and ``data=NAME data.KEY=VALUE``."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml

from cvattn.cli.common import CommandError, shown
from cvattn.data.image_files import ImageError
from cvattn.inference import Generator, images
from cvattn.models.flow import Solver

T = TypeVar("T")
# Of all ways together.
_OPTIONS = ("steps", "solver", "guidance", "truncation")


def say(note: str) -> None:
    """A note on stderr."""
    print(f"note: {shown(note)}", file=sys.stderr)


def find_images(paths: Iterable[str]) -> list[Path]:
    """As :func:`cvattn.inference.find_images`; what is left out is said on stderr."""
    return images.find_images(paths, say)


def readable(paths: Iterable[Path], read: Callable[[Path], T]) -> Iterator[tuple[Path, T]]:
    """Each file that ``read`` can read, and what it gives; of the others, a line says why not."""

    def complain(path: Path, error: ImageError) -> None:
        print(f"error: {shown(path)}: {shown(str(error))}", file=sys.stderr)

    return images.read_each(paths, read, complain)


def add_way(parser: argparse.ArgumentParser) -> None:
    """The options that say how images are made; :func:`way_of` reads them."""
    parser.add_argument("--steps", type=int, metavar="N", help="of the solver (20)")
    parser.add_argument("--solver", choices=get_args(Solver), help="(heun)")
    parser.add_argument(
        "--guidance",
        type=float,
        metavar="G",
        help="more than 1: more of their class and more alike, at twice the cost (1)",
    )
    parser.add_argument(
        "--truncation",
        type=float,
        metavar="T",
        help="of a GAN's noise, in standard deviations: more typical and more alike (none)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N")


def way_of(args: argparse.Namespace, generator: Generator) -> Any:
    """How this network is to make images.

    Raises:
        CommandError: an option that is for networks of another kind, or a value of no use.
    """
    given = {name: getattr(args, name) for name in _OPTIONS if getattr(args, name) is not None}
    fields = {field.name for field in dataclasses.fields(generator.way)}
    other = next((name for name in given if name not in fields), None)
    if other is not None:
        own = ", ".join(f"--{name}" for name in (*_OPTIONS, "seed") if name in fields)
        raise CommandError(
            f"--{other}: a {type(generator.network).__name__} makes images otherwise; it has {own}"
        )
    if given.get("steps", 1) < 1:
        raise CommandError(f"--steps {given['steps']} must be at least 1")
    return generator.way(**given, seed=args.seed)


def parse_data(settings: Sequence[str]) -> tuple[str | None, dict[str, Any]]:
    """``["data=folder", "data.channels=1"]`` -> ``("folder", {"channels": 1})``."""
    from cvattn.inference.own_data import MODULES  # Lightning takes seconds

    name, given = None, {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not (key == "data" or key.startswith("data.")):
            raise CommandError(
                f"cannot read {text!r}; expected data={'|'.join(MODULES)} or data.KEY=VALUE"
            )
        if key == "data":
            name = value
        elif key == "data.root":
            given["root"] = value  # a path, though it may look like a number or YAML's null, ~
        else:
            try:
                given[key.removeprefix("data.")] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise CommandError(f"{key}={value} cannot be read as a YAML value") from error
    return name, given
