"""Rotary positions of timm's ``Eva`` (EVA-02, DINOv3) as arguments of our ``AxialRotary``."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cvattn.core import AxialRotary
from cvattn.weights.vit import one_for_all, refuse_if

_AUGMENTED = ("shift_coords", "jitter_coords", "rescale_coords")
# timm's tables are made in float32 and then kept in the model's dtype: so many times its eps.
_ROUNDED = 16


def rotary_options(theirs: Any) -> dict[str, Any] | None:
    """theta, pairs, coordinates, reference and offset; None where nothing is turned.

    Raises:
        ValueError: what ours has not, by name; a table that these do not give.
    """
    from timm.layers.pos_embed_sincos import RotaryEmbeddingCat, RotaryEmbeddingDinoV3

    rope = getattr(theirs, "rope", None)
    if rope is None:
        return None
    kind = type(rope)
    centered = kind is RotaryEmbeddingDinoV3
    refuse_if({f"rope_type of {kind.__name__}": not centered and kind is not RotaryEmbeddingCat})
    augmented = [name for name in _AUGMENTED if getattr(rope, name, None) is not None]
    grid_type = getattr(rope, "grid_type", "index")
    scaling = getattr(rope, "normalize_coords", "separate")
    refuse_if(
        {
            f"rope_grid_indexing={rope.grid_indexing!r}": rope.grid_indexing != "ij",
            f"rope_{', rope_'.join(augmented)} (random in training)": bool(augmented),
            f"rotary positions with normalize_coords={scaling!r}": scaling != "separate",
            "rotary positions with min_period and max_period": centered
            and not (rope.min_period is None and rope.max_period is None),
            f"rotary positions with in_pixels=True or grid_type={grid_type!r}": not centered
            and (rope.in_pixels or grid_type != "index"),
            "num_prefix_tokens that differ from block to block": any(
                block.attn.num_prefix_tokens != theirs.num_prefix_tokens for block in theirs.blocks
            ),
        }
    )
    halves = [bool(getattr(block.attn, "rotate_half", False)) for block in theirs.blocks]
    reference = None if centered else rope.ref_feat_shape
    options = {
        "theta": float(rope.temperature),
        "pairs": "halves" if one_for_all("rope_rotate_half", halves) else "interleaved",
        "coordinates": "centered" if centered else "index",
        "reference": None if reference is None else [int(side) for side in reference],
        "offset": float(rope.grid_offset),
    }
    _check_table(rope, tuple(theirs.patch_embed.grid_size), options)
    return options


def _check_table(rope: Any, grid: tuple[int, int], options: Mapping[str, Any]) -> None:
    """That ours turns as theirs does, to within the rounding of theirs."""
    with torch.device("cpu"), torch.no_grad():
        given: Tensor = rope.get_embed() if rope.feat_shape is not None else rope.get_embed(grid)
        rotation = AxialRotary(rope.dim, grid, **options)(grid)
        if options["pairs"] == "halves":
            wanted = [part.repeat(1, 2) for part in (rotation.sin, rotation.cos)]
        else:
            wanted = [part.repeat_interleave(2, 1) for part in (rotation.sin, rotation.cos)]
        exact = torch.cat(wanted, dim=-1)
        # An angle of a float32 number is off by its last digit, whatever is made of it later.
        farthest = 2 * (max(grid) + abs(options["offset"])) + sum(options["reference"] or (0,))
        allowed = _ROUNDED * (
            torch.finfo(given.dtype).eps + farthest * torch.finfo(torch.float32).eps
        )
        same = given.shape == exact.shape and bool(
            (given.to("cpu", exact.dtype) - exact).abs().max() <= allowed
        )
    if not same:
        raise ValueError(
            f"the table of {type(rope).__name__} is another than that of {dict(options)} on a grid "
            f"of {grid}, which is what its attributes say; its rotary positions cannot be taken"
        )
