"""timm's networks at small sizes for the tests of from_timm, and what ours is held to."""

import copy
import math

import timm
import torch
from oracles import ROUNDING, fill, outcome

from cvattn.weights import from_timm

SIZES = {"embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}


def network(name, **options):
    """One of timm's by name, for images of 2 x 3 patches, all its parameters random, float64."""
    side = 14 if "patch14" in name else 32 if "patch32" in name else 16
    options = {"img_size": (2 * side, 3 * side)} | SIZES | options
    return turned_exactly(fill(timm.create_model(name, pretrained=False, **options)).eval())


def turned_exactly(theirs):
    """In float64, rotary angles too: timm makes these in float32."""
    theirs.double()
    rope = getattr(theirs, "rope", None)
    if rope is None:
        return theirs
    rough = table(rope, theirs.patch_embed.grid_size)

    def get_embed(shape=None, **_):
        grid = theirs.patch_embed.grid_size if shape is None else shape
        return torch.tensor(angles(rope, *grid), dtype=torch.float64)

    assert (get_embed() - rough).abs().max() < 1e-4
    rope.get_embed = get_embed
    return theirs


def table(rope, grid):
    return rope.get_embed(grid) if rope.feat_shape is None else rope.get_embed()


def angles(rope, height, width):
    """Sines, then cosines, of each token's angles, one by one."""
    quarter, rows = rope.dim // 4, []
    reference = getattr(rope, "ref_feat_shape", None) or (height, width)
    centered = type(rope).__name__ == "RotaryEmbeddingDinoV3"
    halves = getattr(rope, "rotate_half", False)
    for y in range(height):
        for x in range(width):
            turned = []
            for at, size, trained in ((y, height, reference[0]), (x, width, reference[1])):
                at += rope.grid_offset
                place = (
                    2 * math.pi * (2 * (at + 0.5) / size - 1) if centered else at * trained / size
                )
                turned += [place / rope.temperature ** (i / quarter) for i in range(quarter)]
            turned = turned * 2 if halves else [each for each in turned for _ in range(2)]
            rows.append([math.sin(each) for each in turned] + [math.cos(each) for each in turned])
    return rows


def images_for(theirs, batch=2):
    height, width = theirs.patch_embed.img_size
    channels = theirs.patch_embed.proj.in_channels
    return torch.randn(batch, channels, height, width, dtype=torch.float64)


def assert_same(theirs, images=None):
    """Ours gives what theirs gives, and its gradients are theirs, of images and all parameters.

    Copying weights is linear, so the gradients of ours are what the importer makes of a network
    that has theirs as its weights; where a token and its position became one vector, of either.
    """
    images = images_for(theirs) if images is None else images
    ours = from_timm(theirs)
    want, got = outcome(theirs, images), outcome(ours, images)
    # Older versions then interpolate positions to the size that they have, in float32.
    rounding = 1e-6 if theirs.dynamic_img_size and theirs.pos_embed is not None else ROUNDING
    for index in range(2):
        assert got[index].dtype == torch.float64
        assert want[index].abs().max() > 1e-6
        assert (got[index] - want[index]).abs().max() <= rounding * want[index].abs().max()
    slopes = copy.deepcopy(theirs)
    with torch.no_grad():
        for name, parameter in slopes.named_parameters():
            parameter.copy_(want[2][name])
        if theirs.pos_embed is not None:
            own = theirs.pos_embed.shape[1] - math.prod(theirs.patch_embed.grid_size)
            slopes.pos_embed[:, :own] = 0
    wanted = dict(from_timm(slopes).named_parameters())
    assert wanted.keys() == got[2].keys()
    largest = max(slope.abs().max() for slope in wanted.values())
    for name, slope in wanted.items():
        # That of a key's bias is 0 but for rounding: all scores of a query move alike.
        allowed = rounding * max(slope.abs().max(), 1e-2 * largest)
        assert (got[2][name] - slope).abs().max() <= allowed, name
    return ours
