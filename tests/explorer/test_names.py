"""Short names of blocks: what tells them from each other."""

import pytest

from cvattn.explorer.names import follow_each_other, one_stack, short_names


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["encoder.layers.0.self_attn"], ["layer 1"]),
        (["blocks.0.attn", "blocks.11.attn"], ["layer 1", "layer 12"]),
        (
            [f"encoder.layers.encoder_layer_{i}.self_attention" for i in (0, 1)],
            ["layer 1", "layer 2"],
        ),
        (["attention.stage1", "attention.stage2"], ["stage1", "stage2"]),
        (["layer3.inserted_attention"], ["layer3"]),
        (["layer2.inserted_attention", "layer3.1.inserted_attention"], ["layer2", "layer3.1"]),
        (["1"], ["1"]),
        (["attention"], ["attention"]),
        (
            ["layers.0.blocks.0.attn", "layers.0.blocks.1.attn", "layers.1.blocks.0.attn"],
            ["layers.0.blocks.0", "layers.0.blocks.1", "layers.1.blocks.0"],
        ),
        (["features.1.0.attn", "features.3.1.attn"], ["features.1.0", "features.3.1"]),
        (
            [
                "down_blocks.1.attentions.0.transformer_blocks.0.attn1",
                "mid_block.attentions.0.transformer_blocks.0.attn1",
                "mid_block.attentions.0.transformer_blocks.0.attn2",
                "up_blocks.1.attentions.1.transformer_blocks.0.attn2",
            ],
            ["down.1.0.attn1", "mid.0.attn1", "mid.0.attn2", "up.1.1.attn2"],
        ),
        (
            ["encoder.mid_block.attentions.0", "decoder.mid_block.attentions.0"],
            ["encoder", "decoder"],
        ),
        (
            ["decoder.layers.0.self_attn", "decoder.layers.0.cross_attn"],
            ["self_attn", "cross_attn"],
        ),
    ],
    ids=lambda names: names[0] if names else "",
)
def test_short_names(names, short):
    assert short_names(names) == short


def test_a_stack_is_told_from_blocks_that_are_none():
    assert one_stack(["blocks.0.attn", "blocks.1.attn"])
    assert not one_stack(["encoder.mid_block.attentions.0", "decoder.mid_block.attentions.0"])
    assert not one_stack(["layers.0.blocks.0.attn", "layers.0.blocks.1.attn"])
    assert not one_stack(["0", "3"])
    assert follow_each_other(["blocks.1.attn", "blocks.2.attn"])
    assert not follow_each_other(
        ["blocks.0.attn", "blocks.11.attn"]
    )  # nothing rolls out over these
    assert not follow_each_other(["blocks.1.attn", "blocks.0.attn"])
