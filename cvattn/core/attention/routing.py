"""Choosing the route of attention by name, and recording which routes were taken."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, get_args

import torch

from cvattn.core.attention.call import AttentionCall
from cvattn.core.attention.plan import Route, RouteName, choose_route, why_impossible

Record = list[tuple[AttentionCall, Route]]
Chooser = Callable[[AttentionCall], Route]
Doubter = Callable[[RouteName, AttentionCall], str | None]

# Of this thread and task alone.
_ASKED: ContextVar[RouteName | None] = ContextVar("_ASKED", default=None)
_RECORDS: ContextVar[tuple[Record, ...]] = ContextVar("_RECORDS", default=())
# Compilers that follow no ContextVar (torch 2.10's) read what was opened last, in any thread.
_FOLLOWED = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14)
_LAST: dict[str, Any] = {"asked": None, "records": ()}


@contextmanager
def use_route(name: RouteName) -> Iterator[None]:
    """Let each :func:`attention` called inside the block take the route of this name.

    The result does not depend on the route: its time and memory do, and which derivatives there
    are::

        with cvattn.core.use_route("tiled"):  # memory linear in the tokens, second derivatives
            penalty = gradient_penalty(discriminator, images)

    Blocks may be nested; the innermost one counts. It counts in the thread (and asyncio task) that
    opened it (before torch 2.14, what is compiled follows the block that was opened last in any
    thread). A function under ``torch.compile`` called inside the block is compiled for it; the
    block itself cannot be opened in a compiled function.

    Args:
        name: "fused", "padded", "tiled" or "direct", see :class:`cvattn.core.attention.Route`.

    Raises:
        ValueError: no such route; or, from :func:`attention`, one that cannot compute the call, and
            why.
    """
    if name not in get_args(RouteName):
        raise ValueError(f"route {name!r} is none of: {', '.join(get_args(RouteName))}")
    with _opened(_ASKED, "asked", name):
        yield


@contextmanager
def record_routes() -> Iterator[Record]:
    """Collect each call of :func:`attention` made inside the block, and the route that it took.

    Calls of other threads are not collected.
    """
    record: Record = []
    with _opened(_RECORDS, "records", (*_RECORDS.get(), record)):
        yield record


@contextmanager
def _opened(variable: ContextVar[Any], key: str, value: Any) -> Iterator[None]:
    token, before = variable.set(value), _LAST[key]
    _LAST[key] = value
    try:
        yield
    finally:
        _LAST[key] = before
        variable.reset(token)


def take_route(
    call: AttentionCall, choose: Chooser | None = None, unable: Doubter | None = None
) -> Route:
    """The route that was asked for, else the one that the plan chooses; told to open records.

    Args:
        choose, unable: other attention's own :func:`choose_route` and :func:`why_impossible`.
    """
    choose, unable = choose or choose_route, unable or why_impossible
    followed = _FOLLOWED or not torch.compiler.is_compiling()
    name = _ASKED.get() if followed else _LAST["asked"]
    route = choose(call) if name is None else _asked_route(name, call, choose, unable)
    for record in _RECORDS.get() if followed else _LAST["records"]:
        record.append((call, route))
    return route


def _asked_route(name: RouteName, call: AttentionCall, choose: Chooser, unable: Doubter) -> Route:
    reason = unable(name, call)
    if reason is not None:
        raise ValueError(
            f'use_route("{name}") cannot compute this attention: {reason}. Without it the route '
            f'would be "{choose(call).name}".'
        )
    return Route(name, f'asked for by use_route("{name}")', {})
