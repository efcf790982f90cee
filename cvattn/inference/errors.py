"""Errors of this package: what was given, and why it cannot be used."""


class InferenceError(ValueError):
    """A checkpoint, a network, an image or data that cannot be used as asked."""


class NotFiniteError(InferenceError):
    """The network gives NaN or infinity."""

    def __init__(self) -> None:
        super().__init__("the network gives values that are not finite: it is of no use")
