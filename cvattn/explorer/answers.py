"""What a network takes an image for, whatever it returns."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from cvattn.inference import InferenceError
from cvattn.inference.classifier import Guesses, likeliest_of

TOP = 3


def logits_of(answer: Any) -> Tensor | None:
    """(B, outputs), float: the answer itself, or its ``logits`` as of transformers; else None."""
    if not isinstance(answer, Tensor):
        answer = getattr(answer, "logits", None)
    if isinstance(answer, Tensor) and answer.ndim == 2 and answer.is_floating_point():
        return answer
    return None


def guesses_of(
    logits: Tensor | None, class_names: Sequence[str] | None, *, several: bool = False
) -> list[Guesses]:
    """For each image the likeliest outputs; those without a name are told by their number.

    Args:
        several: as in :func:`cvattn.inference.classifier.likeliest_of`.

    Raises:
        NotFiniteError: the network is of no use.
        InferenceError: more names than outputs, or names of what is no logits.
    """
    if logits is None:
        if class_names is not None:
            raise InferenceError(
                "class_names: the network gives no logits (B, outputs) that they could name; "
                "forward=lambda model, images: ... chooses what it gives"
            )
        return []
    names, outputs = list(class_names or ()), logits.shape[1]
    if len(names) > outputs:
        raise InferenceError(f"{len(names)} class_names for {outputs} outputs")
    names += [f"output {index}" for index in range(len(names), outputs)]
    return likeliest_of(logits.detach().float(), names, TOP, several=several)
