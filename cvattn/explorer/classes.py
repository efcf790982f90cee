"""What an image's likeliest classes rest on: heat by the gradient of their logits."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cvattn.explorer.answers import logits_of
from cvattn.explorer.pooling import POSITIONS, averaged
from cvattn.explorer.weights import ROLLOUT, Block
from cvattn.maps import AttentionMaps, attention_relevance, capture_attention
from cvattn.maps.grids import spread
from cvattn.maps.rollout import gradient_weighted, tokens_read

Heats = list[list[np.ndarray]]  # of an image: for each class, each block's (h, w)


def class_heats(
    network: nn.Module,
    image: Tensor,
    blocks: Sequence[Block],
    top: int,
    forward: Callable[[Tensor], Any],
    *,
    grid: tuple[int, int] | None = None,
) -> Heats:
    """For each of the ``top`` likeliest outputs what it takes from where, in each block.

    That is (dA * A)^+ of the weights A and the logit's gradient dA, the mean over heads, summed
    over queries, as :func:`cvattn.maps.attention_heat` gives it with a target; where there is a
    rollout, :func:`cvattn.maps.attention_relevance` of the tokens that the answer reads. A block
    whose keys are words has zeros: they are no places.

    Args:
        image: (1, C, H, W).
        forward: runs the network on it; its answer is, or has, logits (1, outputs).

    Raises:
        ValueError: no gradient leads from the logits to the weights.
    """
    names = [b.name for b in blocks if b.rows == POSITIONS and b.name != ROLLOUT]
    given = image.detach().clone().requires_grad_()
    found: Heats = []
    with torch.enable_grad(), capture_attention(network, names, detach=False, grid=grid) as maps:
        logits = logits_of(forward(given))
        assert logits is not None  # or there would be no guesses
        for target in logits[0].topk(top).indices.tolist():
            gradients = maps.gradients(logits[0, target])
            found.append([_heat(maps, gradients, block) for block in blocks])
    return found


def _heat(maps: AttentionMaps, gradients: dict[str, Tensor], block: Block) -> np.ndarray:
    with torch.no_grad():
        if block.name == ROLLOUT:
            last = list(maps)[-1]
            layout = maps.layout[last]
            read = tokens_read(gradients[last])
            read = read / read.sum(-1, keepdim=True).clamp_min(1)
            detached = {name: weights.detach() for name, weights in maps.items()}
            relevance = attention_relevance(detached, gradients)
            taken = read[:, None] @ relevance
        elif block.name in maps:
            layout = maps.layout[block.name]
            taken = gradient_weighted(maps[block.name].detach(), gradients[block.name])
            taken = taken.mean(1).sum(1, keepdim=True)
        else:
            return np.zeros(block.drawn)
        picture = spread(taken[0, 0].double(), layout)
        return averaged(picture, block.drawn).cpu().numpy()
