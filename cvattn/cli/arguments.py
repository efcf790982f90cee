"""Arguments that several commands take: images, and ``data=NAME data.KEY=VALUE``."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from cvattn.cli.common import CommandError, shown
from cvattn.data.image_files import ImageError
from cvattn.inference import images

T = TypeVar("T")


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
