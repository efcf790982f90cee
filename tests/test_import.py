"""What ``import cvattn`` brings: these names and torch, nothing heavier."""

import importlib
import re
import subprocess
import sys

import pytest

import cvattn

# Frozen: a name that goes missing breaks somebody's code. New ones are added here on purpose.
PUBLIC = {
    "cvattn": "AxialAttention2d CrissCrossAttention2d CrossAttention2d Decoder Encoder "
    "MultiHeadAttention NeighborhoodAttention2d SAGANClassifier SelfAttention1d SelfAttention2d "
    "SelfAttention3d Transformer VisionTransformer WindowAttention2d capture_attention explore fit "
    "insert_attention load remove_attention replace_attention split_parameters",
    "cvattn.core": "Alphabet AxialRotary Decoder DecoderCache DecoderLayer DropPath Encoder "
    "EncoderLayer FeedForward LayerScale MultiHeadAttention RelativeGridBias Rotary Rotation "
    "attention attention_weights masks positions record_routes use_route",
    "cvattn.blocks": "AxialAttention2d AxisAttention2d CrissCrossAttention2d CrossAttention2d "
    "MapAttention NeighborhoodAttention2d SelfAttention1d SelfAttention2d SelfAttention3d "
    "WindowAttention2d insert_attention remove_attention split_parameters",
    "cvattn.models": "Reader SAGAN SAGANClassifier SAGANDiscriminator SAGANGenerator "
    "SegmentationNetwork TimmCNN Transformer UNet VisionTransformer",
    "cvattn.maps": "AttentionMaps attention_distance attention_entropy attention_heat "
    "attention_modules attention_relevance attention_rollout capture_attention heat_on_image "
    "overlay rollout_heat",
    "cvattn.testing": "AttentionCheckError Report check_attention slow_attention",
    "cvattn.cost": "AttentionCost count_macs count_parameters explain_attention predict_peak "
    "training_pflop",
    "cvattn.weights": "from_biggan from_biggan_gan from_compvis from_diffusers "
    "from_guided_diffusion from_mimicry from_mmseg from_monai from_self_attn from_timm from_torch "
    "from_torchvision to_diffusers to_monai to_torch",
    "cvattn.cli": "main",
    "cvattn.data": "BatchLoader CIFAR100Data CIFAR10Data Choice DataError DataInfo DataModule "
    "DigitLinesData DigitScenesData DigitsData Facts FashionMNISTData FolderData HubData "
    "ImageDataModule LabelsCSVData LabelsInfo LineFolderData LoaderData MaskDataModule MaskInfo "
    "MasksFolderData SourceDataModule StringsData VIEWS VOID WebDatasetData choose views_of",
    "cvattn.explorer": "Page explore explore_made explore_making",
    "cvattn.inference": "Classifier FlowGenerator GANGenerator GANWay Generator InferenceError "
    "LabelClassifier LineReader NotFiniteError Segmenter Way as_classifier as_generator "
    "as_image_network as_line_reader as_segmenter find_images generator_of "
    "open_classifier open_generator open_network open_segmenter",
    "cvattn.quality": "Accuracy Distance Distances FeatureNetwork Judgement Learned Lite0 "
    "Neighbours Reference Rung draw_ladder draw_neighbours extract floor frechet judge kernel "
    "ladder learn_from",
    "cvattn.system": "csv_cell did_you_mean figures imported is_offline printable",
    "cvattn.checkpoint": "CheckpointError load read save",
    "cvattn.core.local": "criss_cross_attention neighborhood_attention window_attention",
    "cvattn.core.masks": "axis_mask_2d causal_mask combine_masks criss_cross_mask_2d from_additive "
    "from_torch_masks from_zero_one length_mask local_mask_2d neighborhood_mask_2d padding_mask "
    "window_mask_2d",
    "cvattn.core.positions": "LearnedGridPositions SinusoidalPositions resample_grid sincos_2d "
    "sinusoidal_1d",
}
HEAVY = {
    *("lightning", "pytorch_lightning", "hydra", "omegaconf", "timm", "torchvision"),
    *("matplotlib", "rich", "sklearn", "pyarrow", "torchmetrics", "PIL"),
    *("diffusers", "monai", "einops", "transformers"),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_there(name):
    module = importlib.import_module(name)
    expected = PUBLIC[name].split()
    assert [each for each in expected if not hasattr(module, each)] == []
    if hasattr(module, "__all__"):
        assert sorted(module.__all__) == sorted(expected)


def test_import_and_load_bring_torch_and_nothing_heavier(tmp_path):
    """All modules that were imported, as Python itself lists them, up to three points."""
    args = {"num_classes": 3, "image_size": [8, 12], "embed_dim": 6, "num_heads": 2}
    network = cvattn.VisionTransformer(**args)
    cvattn.checkpoint.save(tmp_path / "small.ckpt", network, args=args, meta={})
    program = (
        "import sys, cvattn; print('imported', file=sys.stderr)\n"
        "cvattn.load('small.ckpt'); print('loaded', file=sys.stderr)\n"
        "import cvattn.cli"
    )
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    library, loading, commands = (
        set(re.findall(r"^import time:.*\| +(\S+)$", part, flags=re.MULTILINE))
        for part in re.split(r"^(?:imported|loaded)$", done.stderr, flags=re.MULTILINE)
    )
    assert {"torch", "cvattn.core", "cvattn.checkpoint"} <= library
    assert "cvattn.cli" in commands
    # torch's compiler, which takes as long as torch itself, is for those who compile.
    assert "torch._dynamo" not in library | loading | commands
    for names in (library, loading, commands):
        assert sorted({name.split(".")[0] for name in names} & HEAVY) == []
    rooms = {".".join(name.split(".")[:2]) for name in library if name.startswith("cvattn.")}
    low = ("blocks", "checkpoint", "core", "integrity", "maps", "models", "system")
    assert rooms == {f"cvattn.{room}" for room in low}


def test_rooms_that_are_imported_when_they_are_named():
    program = (
        "import sys, cvattn\n"
        "rooms = ['cost', 'explorer', 'inference', 'testing', 'weights']\n"
        "assert {*rooms, 'explore'} - {'explorer'} <= set(dir(cvattn))\n"
        "assert not {f'cvattn.{room}' for room in rooms} & set(sys.modules)\n"
        "cvattn.weights.from_torch, cvattn.testing.check_attention, cvattn.cost.count_macs\n"
        "cvattn.nothing"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.endswith("AttributeError: module 'cvattn' has no attribute 'nothing'\n")
