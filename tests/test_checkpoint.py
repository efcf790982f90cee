"""Checkpoints: bit for bit there and back, and what is said of files that are none."""

import pickle
import resource
import zipfile

import pytest
import torch
from safetensors.torch import save_file

import cvattn
from cvattn import checkpoint, models
from cvattn.checkpoint import CheckpointError, load, save

META = {
    "classes": ["cat", "dog", "eel"],
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.1],
    "image_size": [24, 40],
    "channels": 3,
    "config": {"seed": None, "data": {"_target_": "cvattn.data.FolderData", "root": "somewhere"}},
}
SMALL = {
    "SAGANClassifier": {
        "num_classes": 3,
        "image_size": [24, 40],
        "widths": [5, 7, 11],
        "attention_after": ["stage1", "stage3"],
        "attention": "biggan",
    },
    "VisionTransformer": {
        "num_classes": 3,
        "image_size": [24, 40],
        "patch_size": 8,
        "stem": "conv",
        "embed_dim": 12,
        "num_heads": 2,
        "ffn_dim": 17,
        "num_layers": 3,
        "pool": "cls",
        "dropout": 0.3,
        "layer_scale": 0.1,
    },
    "Reader": {
        "target_vocab": 23,
        "height": 32,
        "in_channels": 3,
        "stem": [5, 7],
        "embed_dim": 12,
        "num_heads": 3,
        "ffn_dim": 17,
        "num_encoder_layers": 2,
        "num_decoder_layers": 1,
    },
    "TimmCNN": {
        "name": "test_resnet",
        "num_classes": 3,
        "small_images": True,
        "attention": {"after": "layer2", "block": "pooled"},
    },
    "SegmentationNetwork": {
        "num_classes": 3,
        "image_size": [24, 40],
        "encoder": "test_resnet",
        "width": 6,
        "attention": {"after": "layer1", "block": "pooled"},
    },
    "UNet": {
        "out_channels": 5,
        "image_size": [24, 40],
        "classes": 3,
        "patch_size": 2,
        "width": 6,
        "multipliers": [1, 3],
        "blocks": 2,
        "attention": "window",
        "attention_at": [1],
        "dropout": 0.1,
    },
    "SAGAN": {
        "image_size": [16, 20],
        "classes": 5,
        "noise_dim": 7,
        "width": 6,
        "discriminator_width": 5,
        "attention": "common",
        "discriminator_attention_after": [2],
        "spectral_norm_labels": False,
        "upsampling": "bilinear",
        "init": "xavier",
    },
    "SAGANGenerator": {"image_size": [16, 20], "noise_dim": 7, "width": 6},
    "SAGANDiscriminator": {"image_size": [24, 40], "width": 6},
    "Transformer": {
        "source_vocab": 19,
        "target_vocab": 23,
        "embed_dim": 12,
        "num_heads": 3,
        "ffn_dim": 17,
        "num_encoder_layers": 2,
        "num_decoder_layers": 1,
    },
}


def build(name):
    """A network that is not as initialised: everything in its state was moved."""
    network = getattr(models, name)(**SMALL[name])
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand_like(value))
    return network


def inputs(name):
    if name == "Transformer":
        return torch.randint(1, 19, (2, 7)), torch.randint(1, 23, (2, 5))
    if name == "Reader":
        images, widths = torch.randn(2, 3, 32, 40), torch.tensor([40, 17])
        return images, widths, torch.randint(1, 23, (2, 5))
    if name == "SAGAN":
        return torch.randn(2, 7), torch.tensor([3, 1])
    if name == "SAGANGenerator":
        return (torch.randn(2, 7),)
    images = torch.randn(2, 3, 24, 40)
    if name == "UNet":
        return images, torch.rand(2), torch.tensor([3, 1])
    return (images,)


@pytest.fixture
def vit(tmp_path):
    path = tmp_path / "vit.ckpt"
    save(path, build("VisionTransformer"), args=SMALL["VisionTransformer"], meta=META)
    return path


def test_every_network_is_covered_here():
    assert set(SMALL) == set(models.__all__)


@pytest.mark.sweep(8)
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("name", models.__all__)
def test_there_and_back_is_exact(name, suffix, tmp_path):
    network = build(name)
    save(tmp_path / f"n{suffix}", network, args=SMALL[name], meta=META)
    loaded = cvattn.load(tmp_path / f"n{suffix}")
    assert type(loaded) is type(network)
    assert loaded.meta == META
    assert not any(module.training for module in loaded.modules())
    state, found = network.state_dict(), loaded.state_dict()
    assert list(state) == list(found)
    assert all(torch.equal(state[key], found[key]) for key in state)
    batch = inputs(name)
    network.eval()
    assert torch.equal(loaded(*batch), network(*batch))


def test_the_file_opens_with_weights_only_and_is_plain(vit):
    content = torch.load(vit, weights_only=True)
    assert set(content) == {"cvattn", "state_dict"}
    assert all(key.startswith("network.") for key in content["state_dict"])
    assert content["cvattn"] == {
        "format": 1,
        "model": "VisionTransformer",
        "args": SMALL["VisionTransformer"],
        "meta": META,
    }


def test_compiling_in_place_changes_no_key(tmp_path):
    network = build("SAGANClassifier")
    keys = list(network.state_dict())
    network.compile()
    save(tmp_path / "n.ckpt", network, args=SMALL["SAGANClassifier"], meta=META)
    assert list(load(tmp_path / "n.ckpt").state_dict()) == keys


def test_what_training_keeps_beside_it_is_ignored(vit):
    content = torch.load(vit, weights_only=True)
    content |= {"epoch": 3, "optimizer_states": [{}], "pytorch-lightning_version": "2.6.6"}
    content["state_dict"]["val_accuracy.total"] = torch.zeros(3)
    torch.save(content, vit)
    assert isinstance(load(vit), models.VisionTransformer)


class Code:
    """Unpickling this would call ``eval``; the proof is a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return eval, (f"open({str(self.path)!r}, 'w').close()",)


def test_code_in_a_file_is_not_run(tmp_path):
    proof = tmp_path / "proof"
    torch.save({"cvattn": Code(proof), "state_dict": {}}, tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(pickle.dumps(Code(proof)))
    with pytest.raises(CheckpointError, match="more than tensors and plain values"):
        load(tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        load(tmp_path / "b.ckpt")
    assert not proof.exists()
    torch.load(tmp_path / "a.ckpt", weights_only=False)
    assert proof.exists()  # it would have


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"just words\n", "is not a checkpoint"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "is not a checkpoint"),
        (pickle.dumps([1, 2]), "is not a checkpoint"),
        (b"\x80\x02r", "is not a checkpoint"),  # an IndexError of torch's
    ],
)
def test_files_of_other_kinds(tmp_path, content, message):
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(tmp_path / "x.ckpt")
    assert "x.ckpt" in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch's advice would be to load it unsafely


@pytest.mark.parametrize("part", [0.01, 0.3, 0.97])
def test_a_file_cut_short(vit, part):
    whole = vit.read_bytes()
    vit.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(CheckpointError, match="is damaged: cut short"):
        load(vit)


def test_safetensors_that_are_none_or_not_ours(tmp_path):
    network, path = build("VisionTransformer"), tmp_path / "n.safetensors"
    save(path, network, args=SMALL["VisionTransformer"], meta=META)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"n\.safetensors is damaged, or no safetensors file"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is empty"):
        load(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="was not written by cvattn"):
        load(path)


def test_another_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as archive:
        archive.writestr("a/b.txt", "words")
    with pytest.raises(CheckpointError, match=r"x\.ckpt cannot be loaded"):
        load(tmp_path / "x.ckpt")


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "none.ckpt", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"no checkpoint at {path}; .*vit-digits"):
            load(path)


def edited(path, change):
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def test_a_checkpoint_of_other_code(vit):
    edited(vit, lambda content: content.pop("cvattn"))
    with pytest.raises(CheckpointError, match="was not written by cvattn"):
        load(vit)
    torch.save(torch.zeros(3), vit)
    with pytest.raises(CheckpointError, match="was not written by cvattn"):
        load(vit)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "has checkpoint format 2, this version reads 1"),
        ({"format": None}, "has checkpoint format None"),
        (
            {"model": "Linear"},
            "holds a 'Linear'; this version knows SAGAN, Reader, SAGANClassifier",
        ),
        ({"model": "image_input"}, "holds a 'image_input'"),
        ({"model": ["VisionTransformer"]}, "holds a "),
        ({"args": None}, "is damaged: its 'cvattn' entry has no 'args'"),
        ({"meta": 3}, "is damaged: its 'cvattn' entry has no 'meta'"),
        ({"args": {}}, "cannot be built as stored: .*num_classes"),
        ({"args": {"num_classes": 3, "depth": 2}}, "cannot be built as stored: .*depth"),
        ({"args": {"num_classes": -3}}, "cannot be built as stored: .*negative"),
        ({"args": {"num_classes": 3, "num_heads": 5}}, "cannot be built as stored: .*192.*5"),
    ],
)
def test_entries_that_do_not_fit(vit, changes, message):
    edited(vit, lambda content: content["cvattn"].update(changes))
    with pytest.raises(CheckpointError, match=message) as caught:
        load(vit)
    assert str(vit) in str(caught.value)


def test_weights_of_another_size(vit):
    args = {**SMALL["VisionTransformer"], "num_classes": 5}
    edited(vit, lambda content: content["cvattn"].update(args=args))
    with pytest.raises(CheckpointError, match=r"do not fit VisionTransformer: (?s:.*)head.weight"):
        load(vit)
    edited(vit, lambda content: content["state_dict"].clear())
    with pytest.raises(CheckpointError, match=r"do not fit VisionTransformer: (?s:.*)Missing"):
        load(vit)


class Own(torch.nn.Module):
    """A network of somebody's own."""

    def __init__(self, width):
        super().__init__()
        self.layer = torch.nn.Linear(2, width)
        self.drop = torch.nn.Dropout()


def make_own(width):
    return Own(width)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("given", [Own, make_own, Own(5)], ids=["class", "function", "network"])
def test_a_network_of_ones_own_is_loaded_where_it_is_given(suffix, given, tmp_path):
    path, own = tmp_path / f"n{suffix}", Own(5)
    save(path, own, args={"width": 5}, meta=META)
    assert checkpoint.read(path)["cvattn"]["model"] == f"{Own.__module__}:Own"
    with pytest.raises(CheckpointError, match=rf"own, {Own.__module__}:Own, .*network=Own\), or "):
        load(path)
    state = torch.get_rng_state()
    again = load(path, network=given)
    assert torch.equal(torch.get_rng_state(), state)
    assert (again is given) == isinstance(given, Own)
    assert not again.training
    assert again.meta == META
    assert torch.equal(again.layer.weight, own.layer.weight)


def test_what_cannot_be_loaded_leaves_the_network_that_was_given(tmp_path):
    save(tmp_path / "n.ckpt", Own(5), args={"width": 5}, meta={})
    content = torch.load(tmp_path / "n.ckpt", weights_only=True)
    del content["state_dict"]["network.layer.bias"]  # the weights fit, and would be taken first
    torch.save(content, tmp_path / "n.ckpt")
    given = Own(5).train()
    before = {key: value.clone() for key, value in given.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"do not fit .*:Own: (?s:.*)layer.bias"):
        load(tmp_path / "n.ckpt", network=given)
    assert all(torch.equal(value, before[key]) for key, value in given.state_dict().items())
    assert given.training
    for wrong, message in [
        (lambda: Own(5), r"cannot be built as stored: .*unexpected keyword argument 'width'"),
        (lambda width: "text", r"network= made a str; expected a torch\.nn\.Module"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path / "n.ckpt", network=wrong)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_what_cannot_be_written_leaves_what_was_there(suffix, tmp_path):
    path = tmp_path / f"net{suffix}"
    save(path, build("SAGANClassifier"), args=SMALL["SAGANClassifier"], meta={})
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as a disk that is full
    try:
        with pytest.raises(OSError, match=r"cannot write .*File too large"):
            save(path, build("VisionTransformer"), args=SMALL["VisionTransformer"], meta={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_read_gives_the_whole_content(vit):
    assert set(checkpoint.read(vit)) == {"cvattn", "state_dict"}
