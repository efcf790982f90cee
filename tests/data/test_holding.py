"""The three ways of holding pictures: the same images, orders, errors; files that are shared."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from cvattn.data import BatchLoader, DataError, FolderData
from cvattn.data.images import holding, mapped, sourced
from cvattn.data.images.augment import CropFlip
from cvattn.data.images.base import channel_statistics
from cvattn.data.images.pictures import Pictures

SIZE = (12, 20)
SHARE = (0.3, 1.0)


def draw(root, *, seed=0):
    """37 + 41 training images and 11 + 13 test images of many sizes, as PNG and JPEG."""
    rng = np.random.default_rng(seed)
    for part, counts in {"train": (37, 41), "test": (11, 13)}.items():
        for name, count in zip(("dark", "light"), counts, strict=True):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                height, width = rng.integers(7, 90, 2)
                pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.{'png' if i % 2 else 'jpg'}")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """For tests that only read it."""
    root = tmp_path_factory.mktemp("images")
    draw(root)
    return root


def make(root, hold="memory", **options):
    options = {"image_size": SIZE, "batch_size": 7, "workers": 3, **options}
    return FolderData(root=root, hold=hold, **options)


def batches(data, epoch=1):
    data.setup()
    data._epoch = lambda: epoch
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    return [tensor for loader in loaders for batch in loader for tensor in batch]


def assert_equal(one, other):
    assert len(one) == len(other) > 20
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("hold", ["mapped", "stream"])
@pytest.mark.parametrize("channels", [1, 3])
def test_all_three_give_the_same_batches(images, hold, channels):
    whole = make(images, channels=channels, cutout=3)
    other = make(images, hold, channels=channels, cutout=3)
    assert_equal(batches(whole), batches(other))
    assert whole.info.mean == other.info.mean
    examples = whole.example_images(5, "train")
    assert all(map(torch.equal, examples, other.example_images(5, "train")))


def test_of_random_parts_memory_and_file_are_equal(images):
    options = {"random_resized_crop": SHARE, "stored_size": 30}
    whole, other = make(images, **options), make(images, "mapped", **options)
    assert_equal(batches(whole), batches(other))
    assert whole.info == other.info
    plain = make(images)
    for split in ("val", "test"):  # these are as ever
        assert torch.equal(whole.split(split).all_images(), plain.split(split).all_images())
    assert whole.info.fingerprint == plain.info.fingerprint


def test_a_streamed_random_part_is_torchvisions(images):
    """Where it is decoded as it is; of noise, at a half of its size, nothing would be left."""
    size = (31, 43)
    data = make(
        *(images, "stream"),
        image_size=size,
        random_resized_crop=SHARE,
        flip="none",
        mean=[0] * 3,
        std=[1] * 3,
    )
    loader, source = data.train_dataloader(), data._sources()["train"]
    for index in loader.batch_indices(3):
        draws = data._crop().draws(index, seed=0, epoch=3)
        shown = loader.batch(index, 3)[0] * 255
        for at, image, each in zip(index.tolist(), shown, draws, strict=True):
            with Image.open(source.file(at)) as file:
                picture = F.pil_to_tensor(file.convert("RGB"))
            box = data._crop().part(each, *picture.shape[1:])
            expected = F.resized_crop(picture, *box, list(size), antialias=True)
            assert (image - expected).abs().max() < 1.01


@pytest.mark.parametrize("hold", ["memory", "mapped"])
def test_kept_pictures_have_their_shape_and_are_never_made_larger(images, hold):
    data = make(images, hold, random_resized_crop=SHARE, stored_size=25)
    records, source = data.split("train").images.records, data._sources()["train"]
    for at in range(len(source)):
        with Image.open(source.file(at)) as file:
            width, height = file.size
        factor = min(1, 25 / min(width, height))
        kept = np.array(records[at].shape[:2])
        assert np.abs(kept - np.array([height, width]) * factor).max() <= 0.5
        assert min(kept) == min(25, height, width)
    assert make(images, random_resized_crop=SHARE).stored_size == 23  # 20 * 8 / 7


@pytest.mark.parametrize("hold", ["memory", "mapped", "stream"])
@pytest.mark.parametrize("share", [None, SHARE])
def test_neither_batch_size_nor_ranks_nor_workers_change_an_image(images, hold, share):
    def by_image(workers, **options):
        data = make(images, hold, workers=workers, random_resized_crop=share)
        part, info = data.split("train"), data.info
        loader = BatchLoader(
            part.images,
            part.labels,
            mean=info.mean,
            std=info.std,
            train=True,
            seed=5,
            crop=data._crop(),
            augment=CropFlip(crop_pad=2),
            epoch=lambda: 4,
            **options,
        )
        assert len(list(loader)) == len(loader)
        shown = zip(loader.batch_indices(4), loader, strict=True)
        return {
            int(i): image
            for index, (pixels, _) in shown
            for i, image in zip(index, pixels, strict=True)
        }

    one, found = by_image(1, batch_size=11), {}
    for rank in range(3):
        found |= by_image(2 + rank, batch_size=15, rank=rank, world_size=3)
    shared = one.keys() & found.keys()
    assert len(shared) > 40
    assert all(torch.equal(one[i], found[i]) for i in shared)


@pytest.mark.parametrize("hold", ["mapped", "stream"])
def test_a_continued_epoch_goes_on_where_it_was(images, hold):
    whole, rest = (make(images, hold, random_resized_crop=SHARE) for _ in range(2))
    rest._behind = lambda: 4
    expected, found = list(whole.train_dataloader()), list(rest.train_dataloader())
    assert len(found) == len(expected) - 4 > 3
    for ours, theirs in zip(found, expected[4:], strict=True):
        assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("hold", ["memory", "mapped", "stream"])
def test_each_epoch_shows_other_parts_and_what_a_batch_of_it_is(images, hold):
    data = make(images, hold, random_resized_crop=SHARE)
    seen = []
    for epoch in (1, 2):
        data._epoch = lambda epoch=epoch: epoch
        loader = data.train_dataloader()
        for index, shown in zip(loader.batch_indices(epoch), loader, strict=True):
            assert all(map(torch.equal, shown, loader.batch(index, epoch)))
        every = torch.arange(20)
        seen.append(loader.batch(every, epoch)[0])
    changed = (seen[0] != seen[1]).flatten(1).any(1)
    assert changed.sum() > 12  # of narrow pictures the middle is shown, where no draw fits


def threads():
    return [each for each in threading.enumerate() if each.name.startswith("cvattn")]


def test_a_file_that_is_broken_in_mid_run_is_named_and_no_thread_is_left(tmp_path):
    draw(tmp_path)
    data = make(tmp_path, "stream", mean=[0.5] * 3, std=[0.5] * 3)
    data.setup()
    loader = data.train_dataloader()
    path = Path(data._sources()["train"].name(int(loader.batch_indices(0)[4][2])))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    batches = iter(loader)
    for _ in range(4):
        next(batches)
    with pytest.raises(DataError, match=rf"{path} cannot be read: "):
        next(batches)
    assert threads() == []
    path.unlink()
    with pytest.raises(DataError, match=rf"{path} cannot be read: no such file"):
        list(loader)


@pytest.mark.parametrize("hold", ["mapped", "stream"])
def test_a_loader_that_is_left_leaves_no_thread(images, hold):
    batches = iter(make(images, hold).train_dataloader())
    next(batches)
    assert threads()
    batches.close()
    assert threads() == []


def test_to_skip_means_known_before_the_first_epoch(tmp_path):
    """Cut files are; damage within a JPEG is met when it is shown, and is no reason to skip."""
    draw(tmp_path)
    for name in ("4.jpg", "5.png", "6.jpg"):
        path = tmp_path / "train" / "dark" / name
        path.write_bytes(path.read_bytes()[:-200] if name != "6.jpg" else b"")
    data = make(tmp_path, "stream", on_corrupt="skip")
    with pytest.warns(UserWarning, match="3 image files cannot be read"):
        data.setup()
    sizes = data.info.train_size + data.info.val_size
    assert sizes == 37 + 41 - 3
    assert {Path(name).name for name in data.skipped} == {"4.jpg", "5.png", "6.jpg"}
    for _ in range(2):
        assert len(list(data.train_dataloader())) == data.info.train_size // 7
    png = bytearray((tmp_path / "test" / "dark" / "7.png").read_bytes())
    png[len(png) // 2] ^= 255
    (tmp_path / "test" / "dark" / "7.png").write_bytes(png)
    late = make(tmp_path, "stream", on_corrupt="skip")
    with pytest.warns(UserWarning, match="3 image files"):
        late.setup()
    with pytest.raises(DataError, match=r"dark/7.png cannot be read"):
        list(late.test_dataloader())
    known = make(tmp_path, "mapped", on_corrupt="skip")
    with pytest.warns(UserWarning, match="4 image files"):
        known.setup()


def test_constants_are_measured_on_a_fixed_sample_where_not_all_is_in_memory(images, monkeypatch):
    everything = make(images)
    everything.setup()
    monkeypatch.setattr(sourced, "SAMPLE", 20)
    found = [make(images, hold, seed=seed) for hold in ("mapped", "stream") for seed in (0, 1)]
    for data in found:
        data.setup()
    assert len({data.info.mean for data in found}) == 1
    assert found[0].info.mean != everything.info.mean
    np.testing.assert_allclose(found[0].info.mean, everything.info.mean, atol=0.05)
    pixels = everything.split("train").images
    exact = channel_statistics(pixels)
    assert everything.info.mean == exact[0]


def test_fingerprints_are_of_pixels_or_say_that_they_are_of_files(images, tmp_path):
    found = {}
    for hold in ("memory", "mapped", "stream"):
        data = make(images, hold)
        data.setup()
        found[hold] = data.info.fingerprint
    assert found["memory"] == found["mapped"]
    assert found["stream"].startswith("files-")
    shutil.copytree(images, tmp_path / "copy", copy_function=shutil.copyfile)
    copy = make(tmp_path / "copy", "stream")
    copy.setup()
    assert copy.info.fingerprint == found["stream"]  # whatever the times of the files
    place = tmp_path / "copy" / "test" / "dark"
    (place / "1.png").rename(place / "x.png")
    other = make(tmp_path / "copy", "stream")
    other.setup()
    assert other.info.fingerprint != found["stream"]


class Opened(Exception):
    pass


@pytest.fixture
def sealed(monkeypatch):
    """From the call on, no picture is decoded."""

    def refuse(*_):
        raise Opened

    return lambda: monkeypatch.setattr(holding, "read_picture", refuse)


def test_a_second_start_decodes_nothing_unless_something_changed(tmp_path, sealed, capfd):
    draw(tmp_path)
    first = batches(make(tmp_path, "mapped"))
    said = capfd.readouterr().err
    assert "decoding the 69 train images of" in said
    assert "GiB that are free there" in said
    sealed()
    assert_equal(first, batches(make(tmp_path, "mapped", batch_size=7, seed=0, cutout=0)))
    assert capfd.readouterr().err == ""
    for change in ({"image_size": (12, 19)}, {"channels": 1}, {"random_resized_crop": SHARE}):
        with pytest.raises(Opened):
            make(tmp_path, "mapped", **change).setup()
    path = tmp_path / "train" / "dark" / "3.png"
    facts = path.stat()
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    with pytest.raises(Opened):
        make(tmp_path, "mapped").setup()


def kept():
    return sorted(Path(os.environ["CVATTN_CACHE"]).glob("*.images"))


def test_a_changed_data_set_takes_the_place_of_its_old_pixels(tmp_path):
    draw(tmp_path)
    make(tmp_path, "mapped").setup()
    before = kept()
    assert [path.name.split("-")[1] for path in before] == ["test", "train", "val"]
    shutil.rmtree(tmp_path / "train")
    shutil.rmtree(tmp_path / "test")
    draw(tmp_path, seed=1)
    assert_equal(batches(make(tmp_path, "mapped")), batches(make(tmp_path)))
    assert kept() == before


def test_a_damaged_file_is_made_anew_and_it_is_said(images, capfd):
    expected = batches(make(images, "mapped"))
    for path, content in zip(kept(), (b"nonsense", kept()[1].read_bytes()[:-1], b""), strict=True):
        path.write_bytes(content)
    capfd.readouterr()
    assert_equal(batches(make(images, "mapped")), expected)
    assert capfd.readouterr().err.count("it is made anew") == 3


def test_no_cache_folder_no_room_and_no_permission_are_told(images, monkeypatch, tmp_path):
    usage = shutil._ntuple_diskusage(2**30, 2**30 - 99, 99)
    monkeypatch.setattr(mapped.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"69 train images of .* take 0.00 GiB .* 0.00 GiB are"):
        make(images, "mapped").setup()
    assert kept() == []
    monkeypatch.undo()
    monkeypatch.setenv("CVATTN_CACHE", "off")
    with pytest.raises(DataError, match="CVATTN_CACHE=off says that there is none; set"):
        make(images, "mapped").setup()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CVATTN_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(DataError, match=r"cannot be written: Not a directory.*data.hold=stream"):
        make(images, "mapped").setup()


@pytest.mark.parametrize("share", [None, SHARE])
def test_the_size_that_is_told_is_that_of_the_file(images, share):
    data = make(images, "mapped", random_resized_crop=share)
    data.setup()
    told = data._decoding().bytes_of(data._sources())
    records = [data.split(split).images.records for split in ("train", "val", "test")]
    assert told == sum(file[at].size for file in records for at in range(len(file)))


def test_memory_is_what_is_free_for_all_processes_here(images, monkeypatch):
    needed = 102 * 3 * 12 * 20

    def free(size):
        monkeypatch.setattr(holding, "available_bytes", lambda device: size)

    free(int(needed / 0.8) + 1)
    make(images).setup()
    free(int(needed / 0.8) - 1)
    with pytest.raises(DataError, match=r"102 images of 12 x 20 need 0.0 GiB, .*hold=stream"):
        make(images).setup()
    make(images, "stream").setup()
    free(int(3 * needed / 0.8) - 1)
    data = make(images)
    data._processes_here = lambda: 3
    with pytest.raises(DataError, match=r"need 0.0 GiB in each of 3 processes"):
        data.prepare_data()


def test_workers_share_the_cores(monkeypatch):
    monkeypatch.setattr(holding, "usable_cores", lambda: 12)
    assert [holding.default_workers(n) for n in (1, 2, 3, 12, 50)] == [8, 6, 4, 1, 1]


def test_pictures_are_indexed_as_a_tensor_is(images):
    pictures, tensor = (make(images, hold).split("val").images for hold in ("stream", "memory"))
    assert isinstance(pictures, Pictures)
    assert pictures.shape == tuple(tensor.shape)
    index = torch.tensor([3, 1, 8, 3])
    assert torch.equal(pictures[index], tensor[index])
    assert pictures[torch.empty(0, dtype=torch.int64)].shape == (0, 3, *SIZE)


def test_one_at_a_time_is_decoded_ahead_by_all_threads(images):
    part = make(images, "stream", workers=4).split("val")
    loader = BatchLoader(part.images, part.labels, batch_size=1, mean=[0.5] * 3, std=[0.5] * 3)
    assert [len(labels) for _, labels in loader] == [1] * 9


# Decodes into the cache; after some pictures it says so and waits.
WRITER = """
import sys
from pathlib import Path
import torch
from cvattn.data.images import holding, mapped, sources
read, count = holding.read_picture, 0
def slow(file, channels):
    global count
    count += 1
    if count == 30:
        print("half", flush=True)
        sys.stdin.readline()
    return read(file, channels)
holding.read_picture = slow
paths = sorted(Path(sys.argv[1]).glob("train/*/*"))
source = sources.FileSource(Path(sys.argv[1]), paths, torch.zeros(len(paths)).long())
how = holding.Decoding(3, (12, 20), None, 20, 1)
held = mapped.mapped(source, "test", how, name="some", place=sys.argv[1])
print(count, held.fingerprint, flush=True)
assert "pytorch_lightning" not in sys.modules
"""


def start(root, cwd):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
    )


@pytest.mark.slow
def test_one_writes_the_others_wait_and_a_kill_leaves_nothing_that_is_believed(images, tmp_path):
    folder = Path(os.environ["CVATTN_CACHE"])
    killed = start(images, tmp_path)
    assert killed.stdout.readline() == "half\n"
    (half,) = folder.glob("*.tmp")
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=120)
    assert half.exists()
    assert kept() == []

    writer = start(images, tmp_path)
    assert writer.stdout.readline() == "half\n"
    assert not half.exists()
    others = [start(images, tmp_path) for _ in range(2)]
    for other in others:
        assert "waiting: another process is writing" in other.stderr.readline()
        assert other.poll() is None
    written, _ = writer.communicate("\n", timeout=120)
    count, fingerprint = written.split()
    assert count == "78"
    assert [other.communicate(timeout=120)[0] for other in others] == [f"0 {fingerprint}\n"] * 2
    assert len(kept()) == 1
    assert list(folder.glob("*.tmp")) == []
