"""Which sizes a module takes: the first check, and what the others then run on."""

import torch

from cvattn.testing.report import Finding, failed, passed
from cvattn.testing.subject import ModuleRaised, Subject


def check_sizes(subject: Subject) -> Finding:
    """The module runs and keeps the shape; on maps whose sides differ, which the others then use.

    Raises:
        ModuleRaised: on the example itself.
    """
    try:
        _settle_dtype(subject)
    except ModuleRaised as error:
        for side in {*subject.sizes[1:]} if subject.is_map else ():
            square = (subject.sizes[0], side, side)
            if runs(subject, square):
                given, subject.sizes = subject.sizes, square
                return _sides_mixed(given, square, str(error))
        raise
    wanted = subject.draw()
    found = subject(wanted).shape
    if found != wanted.shape:
        return failed(
            f"an input of {tuple(wanted.shape)} gave an output of {tuple(found)}",
            "the same shape",
            "H and W swapped, or tokens and channels, where the result is reshaped back",
        )
    if subject.is_map and subject.sizes[1] == subject.sizes[2]:
        channels, side, _ = subject.sizes
        longer = (channels, side, side + 2)
        if not runs(subject, longer):
            if runs(subject, (channels, side + 2, side + 2)):
                return _sides_mixed(longer, subject.sizes, "it raised or changed the shape")
            return passed("keeps the shape; takes maps of this one size only")
        subject.sizes = longer
    return passed(f"keeps the shape of {tuple(subject.draw().shape)}")


def _settle_dtype(subject: Subject) -> None:
    try:
        subject(subject.draw())
    except ModuleRaised:
        subject.use(torch.float32)
        try:
            subject(subject.draw())
        except ModuleRaised:
            subject.use(torch.float64)  # for a message that does not depend on this attempt
            raise


def runs(subject: Subject, sizes: tuple[int, ...]) -> bool:
    """Whether the module takes an input of these sizes and keeps its shape."""
    x = subject.draw(sizes)
    try:
        return subject(x).shape == x.shape
    except ModuleRaised:
        return False


def _sides_mixed(bad: tuple[int, ...], good: tuple[int, ...], what: str) -> Finding:
    return failed(
        f"maps {good} work and {bad} do not: {what}",
        "any H and W",
        "H and W swapped where tokens become a map again: .view(B, C, H, W) with "
        "H, W = x.shape[-2:]",
    )
