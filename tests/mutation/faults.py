"""Faults that people make in attention code, each as a change of one place in ours.

A fault must be silent: tests that it breaks fail in a comparison, not in a crash.
"""

from typing import NamedTuple


class Fault(NamedTuple):
    """A change and the tests that must see it.

    Attributes:
        name: what is wrong.
        file: inside ``cvattn/``.
        old: text that occurs once in the file; new: what takes its place.
        tests: node ids inside ``tests/``.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


ATTENTION = "core/test_attention.py::"
LOOP_TILED = ATTENTION + "test_equals_the_loop_forward_and_gradients[tiled-3-11-5-7]"
LOOP_DIRECT = ATTENTION + "test_equals_the_loop_forward_and_gradients[direct-3-11-5-7]"
MASK = ATTENTION + "test_trap_02_mask_bool_and_causal_together"
EMPTY = ATTENTION + "test_trap_01_nothing_to_attend_to_is_zero"
TILES = "core/test_tiled.py::"
TILES_LOOP = TILES + "test_equals_the_loop_forward_and_gradients"
HIDDEN = "core/test_nonfinite.py::test_not_finite_is_seen_by_those_who_may_alone"
HEADS = "core/test_multi_head.py::test_trap_13_one_big_projection_equals_one_per_head"
BLOCK = "blocks/test_self_attention2d.py::"
FORMS = "blocks/test_map_forms.py::"
LOCAL = "blocks/test_local_blocks.py::"
ANY = "maps/test_any_model.py::"
CALLS = "maps/test_calls.py::"
BLOCK_LOOP = BLOCK + "test_equals_a_loop_over_positions[odd-small-map route]"

FAULTS = (
    # Heads and scale
    Fault(
        "scale by embed_dim instead of head_dim",
        "core/multi_head.py",
        "heads = attention(q, k, v, ",
        "heads = attention(q, k, v, scale=self.embed_dim**-0.5, ",
        (HEADS,),
    ),
    Fault(
        "key and value swapped",
        "core/multi_head.py",
        "return q, self._split(k), self._split(v), terms",
        "return q, self._split(v), self._split(k), terms",
        (HEADS,),
    ),
    Fault(
        "heads not transposed",
        "core/multi_head.py",
        "return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)",
        "return x.reshape(x.shape[0], self.num_heads, x.shape[1], -1)",
        (HEADS,),
    ),
    Fault(
        "dropout in eval",
        "core/multi_head.py",
        "dropout = self.dropout if self.training else 0.0",
        "dropout = self.dropout",
        ("core/test_multi_head.py::test_trap_08_dropout_is_for_training_alone",),
    ),
    # Masks
    Fault(
        "mask ignored",
        "core/attention/inputs.py",
        "allowed = take_rows(attn_mask, length, rows)",
        "allowed = None",
        (MASK,),
    ),
    Fault(
        "mask ignored by the tiles",
        "core/attention/tiles.py",
        "allowed = None if self.attn_mask is None else self.part(self.attn_mask, tile)",
        "allowed = None",
        (MASK,),
    ),
    Fault(
        "mask inverted",
        "core/attention/reference.py",
        'scores.masked_fill(~allowed, float("-inf"))',
        'scores.masked_fill(allowed, float("-inf"))',
        (MASK,),
    ),
    Fault(
        "torch's masks not inverted",
        "core/masks.py",
        "combine_masks(allowed, ~mask)",
        "combine_masks(allowed, mask)",
        ("core/test_masks.py::test_from_torch_masks_against_the_module",),
    ),
    Fault(
        "samples see each other's masks",
        "core/masks.py",
        "mask.unflatten(0, (-1, num_heads))",
        "mask.unflatten(0, (num_heads, -1)).transpose(0, 1)",
        ("core/test_masks.py::test_trap_09_masks_of_samples_stay_apart",),
    ),
    Fault(
        "samples see each other's masks in the tiles",
        "core/attention/tiles.py",
        "return one // self.heads % term.shape[0], one % self.heads % term.shape[1]",
        "return one % self.heads % term.shape[0], one // self.heads % term.shape[1]",
        (TILES_LOOP,),
    ),
    Fault(
        "causal off by one",
        "core/attention/inputs.py",
        "return keys <= rows",
        "return keys < rows",
        (ATTENTION + "test_trap_08_causal_is_aligned_to_the_bottom_right",),
    ),
    Fault(
        "empty rows not zeroed",
        "core/attention/reference.py",
        "scores.softmax(-1).masked_fill(empty, 0.0)",
        "scores.softmax(-1)",
        (EMPTY,),
    ),
    Fault(
        "empty rows not zeroed by the tiles",
        "core/attention/tile_weights.py",
        "scores.masked_fill_(~allowed.any(-1, keepdim=True), 0.0)",
        "pass",
        (EMPTY,),
    ),
    Fault(
        "NaN under a mask leaks",
        "core/attention/nonfinite.py",
        "return x.nan_to_num(0.0, 0.0, 0.0)",
        "return x",
        (HIDDEN,),
    ),
    Fault(
        "NaN under a mask leaks from the tiles",
        "core/attention/tile_weights.py",
        "(x.nan_to_num(0.0, 0.0, 0.0) for x in (q, k, v))",
        "(q, k, v)",
        (HIDDEN,),
    ),
    Fault(
        "NaN that is seen vanishes",
        "core/attention/nonfinite.py",
        "return result if nan_rows is None else result + nan_rows.to(result.dtype)",
        "return result",
        (HIDDEN,),
    ),
    # The formula
    Fault(
        "softmax over queries",
        "core/attention/reference.py",
        "        return scores.softmax(-1)\n",
        "        return scores.softmax(-2)\n",
        (LOOP_DIRECT,),
    ),
    Fault(
        "softmax over queries in the tiles",
        "core/attention/tile_weights.py",
        "torch.softmax(scores, -1, out=scores)",
        "torch.softmax(scores, -2, out=scores)",
        (LOOP_TILED,),
    ),
    # Tiles
    Fault(
        "row sums missing from the tiles' gradient",
        "core/attention/tiled.py",
        "torch.ops.aten._softmax_backward_data.out(",
        "slope.mul_(weights), (lambda *_, **__: None)(",
        (LOOP_TILED,),
    ),
    Fault(
        "scale missing from the gradient of the query",
        "core/attention/tiled.py",
        "group.keys[:, keys]).mul_(scale)",
        "group.keys[:, keys])",
        (LOOP_TILED,),
    ),
    Fault(
        "rows of the last tile skipped",
        "core/attention/tiles.py",
        "in range(0, length, step)",
        "in range(0, length - step + 1, step)",
        (TILES_LOOP,),
    ),
    Fault(
        "last tile begins inside the one before",
        "core/attention/tiles.py",
        "slice(row, last)",
        "slice(max(0, last - step), last)",
        (TILES_LOOP,),
    ),
    Fault(
        "causal tiles have one key too few",
        "core/attention/tiles.py",
        "last + key_length - length",
        "last + key_length - length - 1",
        (LOOP_TILED,),
    ),
    Fault(
        "dropout drawn anew in the backward pass",
        "core/attention/tile_weights.py",
        "self.seed + tile.samples.start",
        "int(torch.randint(2**62, (1,))) + tile.samples.start",
        (TILES + "test_dropout_is_the_same_in_both_passes",),
    ),
    Fault(
        "all tiles drop the same weights",
        "core/attention/tile_weights.py",
        "self.seed + tile.samples.start * self.length + tile.rows.start",
        "self.seed",
        (TILES + "test_dropout_differs_between_rows_and_samples",),
    ),
    Fault(
        "gradient of the bias lands in the first rows",
        "core/attention/tiles.py",
        "place = total[:, :, tile.rows]",
        "place = total[:, :, : tile.shape[1]]",
        (TILES_LOOP,),
    ),
    Fault(
        "second derivative without the mask",
        "core/attention/tiled_second.py",
        "attn_mask=None if allowed is None else allowed[:, None]",
        "attn_mask=None",
        (TILES + "test_second_derivative_equals_the_loop",),
    ),
    # The block
    Fault(
        "H and W swapped",
        "blocks/map_attention.py",
        ".unflatten(2, x.shape[2:])",
        ".unflatten(2, x.shape[:-3:-1]).mT",
        (BLOCK_LOOP,),
    ),
    Fault(
        "gamma dropped",
        "blocks/map_attention.py",
        "torch.addcmul(x, self.gamma, attended)",
        "torch.add(x, attended)",
        (BLOCK_LOOP,),
    ),
    Fault(
        "residual dropped",
        "blocks/map_attention.py",
        "torch.addcmul(x, self.gamma, attended)",
        "torch.addcmul(torch.zeros_like(x), self.gamma, attended)",
        (BLOCK_LOOP,),
    ),
    Fault(
        "pooled keys without pooled values",
        "blocks/self_attention.py",
        "(pool(x, self.kv_pool, ceil_mode=True) for x in (key, value))",
        "(pool(key, self.kv_pool, ceil_mode=True), value[..., :: self.kv_pool, :: self.kv_pool])",
        (BLOCK + "test_equals_a_loop_over_positions[pooled, odd-small-map route]",),
    ),
    # The forms of U-Nets
    Fault(
        "scores without their factor",
        "blocks/self_attention.py",
        '"scale": self.scale,',
        '"scale": 1.0,',
        (FORMS + "test_equals_the_formula[unet]",),
    ),
    Fault(
        "a projection that does not start at 0",
        "blocks/map_attention.py",
        "start_at_zero(cast(nn.Module, self.proj))",
        "pass",
        (FORMS + "test_a_new_block_is_the_identity_and_learns[unet]",),
    ),
    Fault(
        "padding counted by the group norm",
        "blocks/group_norm.py",
        "count = mask.flatten(1).sum(1)",
        "count = torch.ones_like(mask).flatten(1).sum(1)",
        (FORMS + "test_padding_gives_and_gets_nothing[unet]",),
    ),
    Fault(
        "padding attended to",
        "blocks/self_attention.py",
        "None if mask is None else mask.flatten(1)[:, None, None]",
        "None",
        (FORMS + "test_padding_gives_and_gets_nothing[common]",),
    ),
    Fault(
        "padding pooled with what is real",
        "blocks/self_attention.py",
        'x.masked_fill(~mask[:, None], float("-inf"))',
        "x",
        (FORMS + "test_padding_gives_and_gets_nothing[biggan]",),
    ),
    Fault(
        "the mask of a context turned round",
        "blocks/cross_attention2d.py",
        "context_mask.flatten(1)[:, None, None]",
        "~context_mask.flatten(1)[:, None, None]",
        (FORMS + "test_cross_attention[False-False]",),
    ),
    # Local forms
    Fault(
        "windows that are not shifted",
        "blocks/window_attention2d.py",
        "shift=self.shift,\n            key_mask",
        "shift=(0, 0),\n            key_mask",
        (LOCAL + "test_equals_the_global_block_under_the_mask[False-window, shifted]",),
    ),
    Fault(
        "rows and columns swapped",
        "blocks/axial_attention2d.py",
        '(1, width) if self.axis == "row"',
        '(1, width) if self.axis != "row"',
        (LOCAL + "test_equals_the_global_block_under_the_mask[False-rows]",),
    ),
    Fault(
        "a bias of other rows than were asked for",
        "core/relative_bias.py",
        "_offsets(grid[1], rows % grid[1], step[1])",
        "_offsets(grid[1], rows // grid[0], step[1])",
        (LOCAL + "test_weights_of_rows_are_those_of_the_global_block[window, where]",),
    ),
    # Positions, layers, data
    Fault(
        "learned positions not added",
        "core/positions.py",
        "return x + resample_grid(self.table, self._size, size)",
        "return x",
        ("models/test_vit.py::test_tokens_are_patches_row_by_row_with_their_position",),
    ),
    Fault(
        "positions resampled with rows and columns swapped",
        "core/positions.py",
        "size=new, mode",
        "size=new[::-1], mode",
        ("core/test_positions.py::TestLearnedGridPositions::test_resample_keeps_axes_apart",),
    ),
    Fault(
        "rollout in the wrong order of layers",
        "maps/rollout.py",
        "mixed @ rollout",
        "rollout @ mixed",
        ("maps/test_rollout.py::test_two_layers_roll_out_to_their_closed_form",),
    ),
    Fault(
        "an inserted block behind other hooks",
        "blocks/insertion.py",
        "attend, prepend=True",
        "attend, prepend=False",
        ("blocks/test_insertion.py::test_other_hooks_see_what_comes_out_of_the_block",),
    ),
    Fault(
        "sinusoidal positions not added",
        "core/positions.py",
        "return x + positions",
        "return x",
        ("models/test_seq2seq.py::test_source_and_its_order_matter",),
    ),
    Fault(
        "rows and columns of positions swapped",
        "core/positions.py",
        "torch.cat([rows, columns], dim=-1)",
        "torch.cat([columns, rows], dim=-1)",
        ("core/test_positions.py::test_sincos_2d",),
    ),
    Fault(
        "windows of others rolled the wrong way",
        "maps/windows.py",
        "else -by",
        "else by",
        (ANY + "test_weights_are_those_that_the_library_says[torchvision-Swin]",),
    ),
    Fault(
        "windows of others padded before they are rolled",
        "maps/windows.py",
        "        if rolls_first:\n",
        "        if not rolls_first:\n",
        (ANY + "test_windows_are_laid_back_onto_the_map[swin, padded]",),
    ),
    Fault(
        "torch's causal mask aligned as ours",
        "maps/calls.py",
        "if is_causal and length != keys:",
        "if False:",
        (CALLS + "test_weights_and_their_gradients_in_every_form[causal, fewer queries]",),
    ),
    Fault(
        "grouped heads repeated in the wrong order",
        "maps/calls.py",
        "each.repeat_interleave(times, -3)",
        "each.repeat(1, times, 1, 1)",
        (CALLS + "test_weights_and_their_gradients_in_every_form[grouped heads]",),
    ),
    Fault(
        "torch's fused modules run unfused while they are watched",
        "maps/fast_path.py",
        "return None if module.training or with_gradients else",
        "return None if True else",
        ("maps/test_torch_modules.py::test_torch_modules_fused_and_not[even-post-none]",),
    ),
    Fault(
        "height and width of others' maps swapped",
        "maps/grids.py",
        "readings = [(shape[2], shape[3]), (shape[1], shape[2])]",
        "readings = [(shape[3], shape[2]), (shape[1], shape[2])]",
        (ANY + "test_a_planted_patch_lies_where_the_keys_change[diffusers-UNet2DModel]",),
    ),
    Fault(
        "the class token counted as the last key of a ViT of others",
        "maps/grids.py",
        "weights[..., layout.num_prefix_tokens :]",
        "weights[..., : weights.shape[-1] - layout.num_prefix_tokens]",
        (ANY + "test_a_planted_patch_lies_where_the_keys_change[timm-ViT]",),
    ),
    Fault(
        "gradients of weights by the values of other keys",
        "core/observed.py",
        "output_gradient @ self.value.to(output_gradient.dtype).mT",
        "output_gradient @ self.value.flip(-2).to(output_gradient.dtype).mT",
        ("maps/test_gradients_of_weights.py::test_by_finite_differences",),
    ),
    Fault(
        "residual of the encoder dropped",
        "core/encoder.py",
        "x = x + self.branch1(",
        "x = self.branch1(",
        ("core/test_encoder.py::test_layer_scale_and_drop_path_stand_before_the_sum",),
    ),
    Fault(
        "layers sharing init",
        "core/encoder.py",
        "        self.norm = (\n",
        "        for layer in self.layers:\n"
        "            layer.load_state_dict(self.layers[0].state_dict())\n"
        "        self.norm = (\n",
        ("core/test_encoder.py::test_layers_are_not_clones",),
    ),
    Fault(
        "validation equal to test",
        "data/images/cifar.py",
        'ImageSet(both["train"].images[val], labels[val])',
        'both["test"]',
        ("data/test_cifar.py::test_every_form_gives_the_same_images[folder]",),
    ),
    Fault(
        "validation images train as well",
        "data/split.py",
        "return (~chosen).nonzero().squeeze(1), ",
        "return torch.arange(count), ",
        ("data/test_split.py::test_parts_are_disjoint_and_in_proportion",),
    ),
)
