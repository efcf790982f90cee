"""What multi-head attention asks of its sizes and inputs."""

import torch.nn.functional as F
from torch import Tensor

from cvattn.core.rotary import Rotation


def check_tokens(name: str, given: Tensor, width: int) -> None:
    if given.ndim != 3 or given.shape[-1] != width:
        raise ValueError(
            f"{name} has shape {tuple(given.shape)}; expected (batch, tokens, {width})"
        )


def append_columns(
    term: Tensor | None, extra: int, key_length: int, *, fill: float | bool
) -> Tensor | None:
    """Widen a mask or bias by ``extra`` keys; one shared by all keys is first spelled out."""
    if term is None:
        return None
    if term.shape[-1] == 1:
        term = term.expand(*term.shape[:-1], key_length)
    return F.pad(term, (0, extra), value=fill)


def check_heads(embed_dim: int, num_heads: int) -> None:
    """Raise ValueError, naming the nearest widths that work, unless the heads divide the width."""
    if num_heads < 1 or embed_dim < 1:
        raise ValueError(f"embed_dim={embed_dim} and num_heads={num_heads} must be at least 1")
    if embed_dim % num_heads:
        below = embed_dim // num_heads * num_heads
        near = [str(width) for width in (below, below + num_heads) if width]
        raise ValueError(
            f"embed_dim={embed_dim} is not divisible by num_heads={num_heads}; nearest that are: "
            + ", ".join(near)
        )


def rotation_of_keys(
    rotary: Rotation | None, key_rotary: Rotation | None, *, is_self: bool
) -> Rotation | None:
    """That of the queries in self-attention, else the keys' own; ValueError for one of the two."""
    if is_self and key_rotary is None:
        return rotary
    if (rotary is None) != (key_rotary is None):
        raise ValueError(
            "queries and keys of cross-attention have places of their own: given only "
            f"{'key_rotary' if rotary is None else 'rotary'}; expected both or none"
        )
    return key_rotary
