"""Processes that were given different things are no run: that is said before the first step."""

import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import distributed

from cvattn.harness.assemble import Run
from cvattn.harness.config.errors import ConfigError
from cvattn.harness.provenance import versions

_SHOWN = 4


class SameEverywhere(pl.Callback):
    """Refuses to train where processes differ in configuration, data, code or starting point.

    Lightning compares the shapes of the weights alone. Each node reads its data from its own disk
    and its settings from its own command line; another learning rate or another set of images on
    one of them would train on, and nobody could say what. Names of folders may differ.

    Args:
        run: what this process is about to train.
    """

    def __init__(self, run: Run) -> None:
        self.facts = dict(_facts(run))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit" or trainer.world_size == 1:
            return
        everyone: list[Any] = [None] * trainer.world_size
        distributed.all_gather_object(everyone, (socket.gethostname(), self.facts))
        differences = list(_differences(everyone))
        if differences:
            more = len(differences) - _SHOWN
            raise ConfigError(
                "the processes of this run are not alike: "
                + "; ".join(differences[:_SHOWN])
                + (f"; and {more} more" if more > 0 else "")
                + ". Start them with the same command, code and data"
            )


def _facts(run: Run) -> Iterator[tuple[str, Any]]:
    """What has to be the same, by names that a person knows."""
    yield from _leaves(_without_places(run.resolved, run))
    yield from _leaves({"data": {**run.info.meta(), **run.info.identity()}})
    yield "the commit of the code", run.commits[-1]
    for package, version in versions().items():
        if package != "python":
            yield f"the version of {package}", version
    saved = run.saved
    yield "the start", "new" if saved is None else saved.words


def _differences(everyone: list[tuple[str, Mapping[str, Any]]]) -> Iterator[str]:
    host, first = everyone[0]
    for name in sorted({name for _, facts in everyone for name in facts}):
        for rank, (other, facts) in enumerate(everyone):
            if facts.get(name) != first.get(name):
                yield (
                    f"{name} is {_short(first.get(name))} in process 0 on {host} and "
                    f"{_short(facts.get(name))} in process {rank} on {other}"
                )
                break


def _without_places(node: Any, run: Run) -> Any:
    """Without the folders of the run and of the data, which may be others on each node."""
    if isinstance(node, Mapping):
        return {str(key): _without_places(child, run) for key, child in node.items()}
    if isinstance(node, list):
        return [_without_places(child, run) for child in node]
    if isinstance(node, str):
        root = run.resolved["data"].get("root")
        for place in (str(run.folder), root):
            if place and Path(node).is_relative_to(place):
                return str(Path(node).relative_to(place))
    return node


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, child in node.items():
            yield from _leaves(child, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
