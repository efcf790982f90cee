"""What torch's compiler is told of our functions without being loaded for it."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Answer = TypeVar("Answer")


def constant_in_programs(function: Callable[Given, Answer]) -> Callable[Given, Answer]:
    """Decorator: torch's compiler asks the function once, and takes the answer as a constant.

    As ``torch.compiler.assume_constant_result`` does, which loads the whole compiler: that takes as
    long as ``import torch`` does, and whoever does not compile needs none of it.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
