"""A bit that flipped in a checkpoint: an error that names the file, or nothing changes."""

import io
import random
import struct
import zipfile
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader

import cvattn
from cvattn import VisionTransformer, checkpoint
from cvattn.checkpoint import BUNDLED, CheckpointError, describe
from cvattn.cli import main
from cvattn.harness.checkpoints import WholeCheckpoints
from cvattn.integrity import DamagedError, check_archive, digest
from cvattn.models import Reader
from cvattn.tasks import ClassificationTask

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*", "ignore:.*does not have many workers.*", "ignore:.*logging interval.*"
)
ARGS = {"num_classes": 3, "in_channels": 1, "image_size": [4, 6], "patch_size": 2}
ARGS |= {"embed_dim": 6, "num_heads": 2, "ffn_dim": 7, "num_layers": 1}
META = {"classes": ["a", "b", "c"], "mean": [0.25], "std": [0.5], "image_size": [4, 6]}
META |= {"channels": 1, "config": {"seed": 3}}


class Entry(pl.Callback):
    def on_save_checkpoint(self, trainer, module, content):
        content["cvattn"] = describe(module.network, ARGS, META)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A run's own checkpoint, with its optimiser's state, and its network as safetensors."""
    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(3)
    task = ClassificationTask(
        VisionTransformer(**ARGS), num_classes=3, optimizer=partial(torch.optim.AdamW, lr=0.01)
    )
    batches = [(torch.randn(5, 1, 4, 6), torch.tensor([0, 1, 2, 1, 0]))] * 3
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        num_sanity_val_steps=0,
        logger=False,
        callbacks=[Entry()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    loader = DataLoader(batches, batch_size=None)
    trainer.fit(task, loader, loader)
    trainer.save_checkpoint(folder / "run.ckpt")
    checkpoint.save(folder / "net.safetensors", task.network, args=ARGS, meta=META)
    assert torch.load(folder / "run.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    return {path.suffix: path for path in folder.iterdir()}


def regions(whole: bytes, suffix: str) -> list[range]:
    """What a file consists of, so that flips reach the short parts as well as the long ones."""
    if suffix == ".safetensors":
        header = 8 + struct.unpack("<Q", whole[:8])[0]
        return [range(8), range(8, header), range(header, len(whole))]
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members, directory = archive.infolist(), archive.start_dir
    end = len(whole) - 22 - 20 - 56  # the ends of the directory, three of them
    found = [range(directory, end), range(end, len(whole))]
    for member in members:
        at = member.header_offset
        name, extra = struct.unpack("<2H", whole[at + 26 : at + 30])
        data = at + 30 + name + extra
        found += [range(at, at + 30 + name), range(at + 30 + name, data)]
        found += [range(data, data + member.file_size)] * (1 + 9 * ("data.pkl" in member.filename))
    return [part for part in found if part]


def flip(count: int, path, seed: int):
    """``count`` times (byte, bit, file with that one flipped): half in regions, half anywhere."""
    whole, chance = path.read_bytes(), random.Random(seed)
    parts = regions(whole, path.suffix)
    for index in range(count):
        within = parts[index // 2 % len(parts)] if index % 2 else range(len(whole))
        at, bit = chance.choice(within), chance.randrange(8)
        changed = bytearray(whole)
        changed[at] ^= 1 << bit
        yield at, bit, bytes(changed)


def same(one, two) -> bool:
    """Of one type and value throughout; tensors bit for bit."""
    if type(one) is not type(two):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


def check_flips(path, count, tmp_path, seed):
    want, damaged = checkpoint.read(path), tmp_path / f"some name{path.suffix}"
    refused = unchanged = 0
    for at, bit, content in flip(count, path, seed):
        damaged.write_bytes(content)
        try:
            found = checkpoint.read(damaged)
        except CheckpointError as error:
            refused += str(damaged) in str(error)
        else:
            assert same(found, want), f"bit {bit} of byte {at} is another value, without a word"
            unchanged += 1
    assert refused + unchanged == count, "an error does not name the file"
    assert refused > count / 4  # or the flips would hit nothing


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_flipped_bits(files, suffix, tmp_path):
    check_flips(files[suffix], 300, tmp_path, seed=21)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_five_thousand_flipped_bits(files, suffix, tmp_path):
    check_flips(files[suffix], 5000, tmp_path, seed=22)


def smallest(path):
    """A checkpoint of few bytes that has all that a large one has."""
    state = {"network.w": torch.tensor([[1.5, -2.0], [0.25, 3.0]]), "network.n": torch.tensor(7)}
    entry = {"format": 1, "model": "m", "args": {}, "meta": {"mean": [0.5]}}
    if path.suffix == ".safetensors":
        path.write_bytes(checkpoint._safetensors(state, entry))
    else:
        torch.save({"cvattn": entry, "state_dict": state, "empty": torch.zeros(0)}, path)
    return path


def check_bits(path, places, tmp_path):
    whole, want, damaged = (
        path.read_bytes(),
        checkpoint.read(path),
        tmp_path / f"flipped{path.suffix}",
    )
    for at in places:
        for bit in range(8):
            changed = bytearray(whole)
            changed[at] ^= 1 << bit
            damaged.write_bytes(changed)
            try:
                found = checkpoint.read(damaged)
            except CheckpointError:
                continue
            assert same(found, want), (at, bit)


def test_attributes_in_the_directory(tmp_path):
    """torch takes a member that is said to be a folder for empty: random memory, no error."""
    path = smallest(tmp_path / "small.ckpt")
    whole, places = path.read_bytes(), []
    with zipfile.ZipFile(path) as archive:
        at = archive.start_dir
        for member in archive.infolist():
            places.append(at + 38)  # external attributes
            at += 46 + len(member.filename)
    assert at < len(whole)
    check_bits(path, places, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_every_bit_of_a_small_file(suffix, tmp_path):
    path = smallest(tmp_path / f"small{suffix}")
    check_bits(path, range(path.stat().st_size), tmp_path)


def damage(source, target):
    """One bit of a weight."""
    whole, at = bytearray(source.read_bytes()), -7  # the end of a safetensors file is a tensor
    if source.suffix == ".ckpt":
        with zipfile.ZipFile(source) as archive:
            member = max(
                archive.infolist(), key=lambda each: each.file_size * ("/data/" in each.filename)
            )
        name, extra = struct.unpack_from("<2H", whole, member.header_offset + 26)
        at = member.header_offset + 30 + name + extra + member.file_size // 2
    whole[at] ^= 0x10
    target.write_bytes(whole)
    return target


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_every_command_says_it_in_one_line(files, suffix, tmp_path, capsys):
    path = damage(files[suffix], tmp_path / f"bad{suffix}")
    with pytest.raises(CheckpointError, match="is damaged: cut short, or changed since"):
        cvattn.load(path)
    for command in (
        "predict {} x.png",
        "evaluate {}",
        "explore {} x.png",
        "export {} --to torchexport",
    ):
        assert main(command.format(path).split()) == 2
        said = capsys.readouterr()
        assert f"bad{suffix} is damaged" in said.err, command
        assert "Traceback" not in said.err + said.out
        assert len(said.err.splitlines()) == 1


def test_lightning_reads_through_the_same_door(files, tmp_path):
    """What ``ckpt_path=`` goes on from is read a second time, by the trainer."""
    saver = WholeCheckpoints()
    assert same(saver.load_checkpoint(files[".ckpt"]), checkpoint.read(files[".ckpt"]))
    with pytest.raises(CheckpointError, match=r"bad\.ckpt is damaged"):
        saver.load_checkpoint(damage(files[".ckpt"], tmp_path / "bad.ckpt"))


def test_ones_with_no_digest_still_load(files, tmp_path):
    """As earlier versions wrote them."""
    path = tmp_path / "old.safetensors"
    with safe_open(files[".safetensors"], framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
        entry = file.metadata()["cvattn"]
    save_file(tensors, path, metadata={"cvattn": entry})
    assert same(checkpoint.read(path), checkpoint.read(files[".safetensors"]))


@pytest.mark.parametrize("name", BUNDLED)
def test_those_on_board_have_a_digest(name):
    with safe_open(BUNDLED[name], framework="pt") as file:
        assert file.metadata()["sha256"]


def test_the_form_without_checksums_is_refused(tmp_path):
    path = tmp_path / "old.ckpt"
    content = {"cvattn": {}, "state_dict": {}}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        checkpoint.read(path)


def test_a_member_that_is_named_twice(tmp_path):
    path = tmp_path / "two.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/1", b"one")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x/1", b"two")
    with path.open("rb") as file, pytest.raises(DamagedError, match="names a member twice"):
        check_archive(file)


def test_what_a_digest_tells_apart():
    tensor = torch.arange(6.0).view(2, 3)
    base = digest({"a": "b"}, {"w": tensor, "v": torch.tensor(3.0)})
    assert digest({"a": "b"}, {"v": torch.tensor(3.0), "w": tensor.mT.contiguous().mT}) == base
    for texts, tensors in (
        ({"a": "c"}, {"w": tensor}),
        ({"b": "a"}, {"w": tensor}),
        ({"a": "b"}, {"w": tensor.view(3, 2)}),
        ({"a": "b"}, {"w": tensor.view(torch.int32)}),
        ({"a": "b"}, {"w": -tensor}),
        ({"a": "b"}, {"w2": tensor}),
    ):
        assert digest(texts, tensors | {"v": torch.tensor(3.0)}) != base
    for dtype in (torch.bfloat16, torch.float16, torch.bool, torch.int64, torch.complex64):
        digest({}, {"a": torch.ones(3, dtype=dtype), "b": torch.ones((), dtype=dtype)})


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_tied_weights_are_tied_again(suffix, tmp_path):
    args = {"target_vocab": 7, "stem": [3, 5], "embed_dim": 8, "num_heads": 2, "ffn_dim": 5}
    args |= {"num_encoder_layers": 1, "num_decoder_layers": 1, "tied": True}
    network = Reader(**args)
    state = network.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values() if tensor.numel()}) < len(state)
    checkpoint.save(tmp_path / f"n{suffix}", network, args=args, meta={})
    found = cvattn.load(tmp_path / f"n{suffix}")
    assert same(dict(found.state_dict()), dict(state))
    assert len(list(found.parameters())) == len(list(network.parameters()))


def test_weights_that_share_memory_otherwise(tmp_path):
    """A slice of another tensor, a transposed one, one of a larger storage."""
    network = VisionTransformer(**ARGS)
    packed = torch.randn(3, 6, 6)
    attention = network.encoder.layers[0].self_attn
    attention.q_proj.weight.data, attention.k_proj.weight.data = packed[0], packed[1]
    attention.v_proj.weight.data = packed[1].mT
    checkpoint.save(tmp_path / "n.safetensors", network, args=ARGS, meta=META)
    found = cvattn.load(tmp_path / "n.safetensors")
    assert same(dict(found.state_dict()), dict(network.state_dict()))


def test_loading_draws_no_random_number(files):
    before = torch.get_rng_state()
    for path in files.values():
        cvattn.load(path)
    assert torch.equal(torch.get_rng_state(), before)
