"""data=webdataset and data=hf: as a folder of the same images, in every way of holding them."""

import tarfile

import pytest
import torch
from shard_files import encoded, samples, write_shards, write_tar

from cvattn.data import DataError, FolderData, HubData, WebDatasetData
from cvattn.data.locality import Locality

pytest.importorskip("webdataset", reason="pip install -e '.[shards]'")
datasets = pytest.importorskip("datasets", reason="pip install -e '.[hf]'")

CLASSES = ("cat", "dog", "emu")
PARTS = {"train": (0, 29), "val": (40, 7), "test": (60, 11)}
ODD = {2: "L", 5: "RGBA"}  # modes of some of them
SIZE = {"image_size": [12, 17], "batch_size": 6, "eval_batch_size": 4, "crop_pad": 2}


def pictures(part):
    """(class, name, bytes) of a part, in the order of a folder: class by class."""
    from io import BytesIO

    from PIL import Image

    start, count = PARTS[part]
    found = []
    for i in range(start, start + count):
        data = encoded(i, (20 + i % 7, 24 + i % 5), "PNG" if i % 7 in ODD else "JPEG")
        if i % 7 in ODD:
            out = BytesIO()
            Image.open(BytesIO(data)).convert(ODD[i % 7]).save(out, "PNG")
            data = out.getvalue()
        found.append((CLASSES[i % 3], f"{i:04}", data))
    return sorted(found)


def suffix(data):
    return "png" if data.startswith(b"\x89") else "jpg"


def as_folder(root):
    for part in PARTS:
        for cls, name, data in pictures(part):
            path = root / part / cls / f"{name}.{suffix(data)}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return {"root": root}


def as_shards(root):
    for part in PARTS:
        files = []
        for cls, name, data in pictures(part):
            files.append((f"{name}.{suffix(data)}", data))
            files.append((f"{name}.cls", cls.encode()))
        for at in range(0, len(files), 10):
            write_tar(root / f"{part}-{at // 10:06}.tar", files[at : at + 10])
    return {part: f"{root}/{part}-*.tar" for part in PARTS}


def as_dataset(root):
    datasets.disable_progress_bars()
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    )
    splits = {
        {"val": "validation"}.get(part, part): datasets.Dataset.from_dict(
            {
                "image": [{"bytes": data, "path": None} for _, _, data in pictures(part)],
                "label": [CLASSES.index(cls) for cls, _, _ in pictures(part)],
            },
            features=features,
        )
        for part in PARTS
    }
    datasets.DatasetDict(splits).save_to_disk(str(root))
    return {"path": str(root)}


@pytest.fixture
def places(tmp_path):
    return {
        FolderData: as_folder(tmp_path / "folder"),
        WebDatasetData: as_shards(tmp_path / "shards"),
        HubData: as_dataset(tmp_path / "hf"),
    }


def batches(data):
    data.prepare_data()
    data.setup()
    return [*data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader()]


def assert_same(found, expected):
    assert len(found) == len(expected) > 6
    for (images, labels), (images_, labels_) in zip(found, expected, strict=True):
        assert torch.equal(images, images_)
        assert torch.equal(labels, labels_)


@pytest.mark.parametrize("hold", ["memory", "mapped", "stream"])
@pytest.mark.parametrize("crop", [None, [0.3, 1.0]])
def test_the_same_images_give_the_same_batches(places, hold, crop):
    options = {**SIZE, "hold": hold, "random_resized_crop": crop, "rand_augment": 1, "seed": 5}
    options |= {"color_jitter": 0.4, "random_erasing": 0.5, "balanced_sampling": crop is None}
    folder, shards, hub = (
        cls(**where, **options, **({"shards_at_once": 0} if cls is WebDatasetData else {}))
        for cls, where in places.items()
    )
    expected = batches(folder)
    for other in (shards, hub):
        assert_same(batches(other), expected)
        assert other.info.classes == folder.info.classes == CLASSES
        assert (other.info.mean, other.info.std) == (folder.info.mean, folder.info.std)
        if hold != "stream":  # there the fingerprint is of files
            assert other.info.fingerprint == folder.info.fingerprint


@pytest.mark.parametrize("cls", [WebDatasetData, HubData])
@pytest.mark.parametrize("hold", ["memory", "stream"])
def test_ranks_share_a_batch_and_a_run_goes_on_within_an_epoch(places, cls, hold, monkeypatch):
    def made(rank=0, world_size=1, behind=0):
        data = cls(**places[cls], **SIZE, hold=hold, seed=3)
        monkeypatch.setattr(data, "_place", lambda: (rank, world_size))
        monkeypatch.setattr(data, "_behind", lambda: behind)
        monkeypatch.setattr(data, "_epoch", lambda: 2)
        data.setup()
        return list(data.train_dataloader())

    whole = made()
    assert len(whole) == 4
    for at, parts in enumerate(zip(made(0, 2), made(1, 2), strict=True)):
        assert torch.equal(torch.cat([part[0] for part in parts]), whole[at][0])
    for (images, _), (images_, _) in zip(made(behind=3), whole[3:], strict=True):
        assert torch.equal(images, images_)


def test_training_mixes_few_shards_at_a_time(places):
    data = WebDatasetData(**places[WebDatasetData], **SIZE, shards_at_once=2, seed=1)
    data.setup()
    loader = data.train_dataloader()
    file_of = torch.arange(6).repeat_interleave(torch.tensor([5, 5, 5, 5, 5, 4]))
    expected = Locality(file_of, 2).order(1, 0)[:24]
    assert torch.cat(loader.batch_indices(0)).tolist() == expected.tolist()
    assert "no shard has more than 1 of 3 classes, so batches are badly mixed" in data.info.source
    mixed = WebDatasetData(**places[WebDatasetData], **SIZE, shards_at_once=3)
    assert "badly mixed" not in mixed.describe().source


# A tenth to validate


def test_a_tenth_is_held_out_by_key_whatever_the_shards(tmp_path):
    files = samples(0, 60)
    write_tar(tmp_path / "one.tar", files)
    for at in range(3):
        write_tar(tmp_path / f"three-{at}.tar", files[at * 40 : at * 40 + 40])
    write_tar(tmp_path / "test.tar", samples(90, 95))
    found = []
    for train in ("one.tar", "three-*.tar"):
        data = WebDatasetData(train=f"{tmp_path}/{train}", test=f"{tmp_path}/test.tar", **SIZE)
        assert (data.describe().train_size, data.describe().val_size) == (54, 6)
        sources = data._sources()
        found.append({sources["val"].name(i).split(": ")[1] for i in range(6)})
        kept = {sources["train"].name(i).split(": ")[1] for i in range(54)}
        assert not kept & found[-1]
        assert sources["val"].labels.bincount().tolist() == [2, 2, 2]
    assert found[0] == found[1]


def test_more_samples_move_no_others(tmp_path):
    write_tar(tmp_path / "test.tar", samples(900, 905, classes=2))

    def held(count):
        write_tar(tmp_path / "a.tar", samples(0, count, classes=2))
        data = WebDatasetData(train=f"{tmp_path}/a.tar", test=f"{tmp_path}/test.tar", **SIZE)
        source = data._sources()["val"]
        return {source.name(i) for i in range(len(source))}

    assert len(held(40) & held(60)) >= 3


def test_a_tenth_of_a_split_is_held_out(tmp_path):
    as_dataset(tmp_path / "d")
    whole = datasets.load_from_disk(str(tmp_path / "d"))
    del whole["validation"]
    whole.save_to_disk(str(tmp_path / "e"))
    data = HubData(path=str(tmp_path / "e"), **SIZE)
    assert (data.describe().train_size, data.describe().val_size) == (26, 3)
    assert data._sources()["val"].labels.tolist() == [0, 1, 2]


def test_one_sample_of_each_class_leaves_nothing_to_validate_with(tmp_path):
    train, test = (write_tar(tmp_path / f"{name}.tar", samples(0, 3)) for name in "ab")
    with pytest.raises(DataError, match="there is nothing to validate with"):
        WebDatasetData(train=str(train), test=str(test)).describe()


# Damage, and what does not fit


def spoil(path, name, data=b"\xff\xd8 no picture"):
    """Write a shard anew, one file in it replaced."""
    with tarfile.open(path) as archive:
        files = [(m.name, archive.extractfile(m).read()) for m in archive.getmembers()]
    write_tar(path, [(n, data if n == name else d) for n, d in files])


@pytest.mark.parametrize("hold", ["memory", "mapped"])
def test_corrupt_pictures_are_refused_or_skipped_and_order_stays_local(tmp_path, hold):
    paths = write_shards(tmp_path, (9, 9, 9, 9))
    write_shards(tmp_path, (6,), "test", 100)
    write_shards(tmp_path, (6,), "val", 200)
    spoil(paths[1], "000010.jpg")
    spoil(paths[3], "000030.jpg", encoded(30)[:300])
    where = {part: f"{tmp_path}/{part}-*.tar" for part in PARTS}
    with pytest.raises(DataError, match=r"2 image files cannot be read") as error:
        WebDatasetData(**where, **SIZE, hold=hold).setup()
    assert f"{paths[1]}: 000010: not an image" in str(error.value)
    assert f"{paths[3]}: 000030: " in str(error.value)
    data = WebDatasetData(**where, **SIZE, hold=hold, on_corrupt="skip", shards_at_once=2)
    with pytest.warns(UserWarning, match="They are skipped"):
        data.setup()
    assert data.info.train_size == 34
    assert data.skipped == (f"{paths[1]}: 000010", f"{paths[3]}: 000030")
    file_of = torch.arange(4).repeat_interleave(torch.tensor([9, 8, 9, 8]))
    order = torch.cat(data.train_dataloader().batch_indices(0))
    assert order.tolist() == Locality(file_of, 2).order(0, 0)[: len(order)].tolist()


def test_corrupt_pictures_in_a_stream(tmp_path):
    (path,) = write_shards(tmp_path, (9,))
    for part, start in (("test", 100), ("val", 200)):
        write_shards(tmp_path, (6,), part, start)
    spoil(path, "000004.jpg", b"")
    where = {part: f"{tmp_path}/{part}-*.tar" for part in PARTS}
    data = WebDatasetData(**where, **SIZE, mean=[0.5] * 3, std=[0.2] * 3, hold="stream")
    data.setup()
    with pytest.raises(DataError, match=rf"{path.name}: 000004 cannot be read"):
        list(data.train_dataloader()), list(data.train_dataloader().batch(torch.arange(9)))
    data = WebDatasetData(**where, **SIZE, hold="stream", on_corrupt="skip")
    with pytest.warns(UserWarning, match="They are skipped"):
        data.setup()
    assert data.info.train_size == 8


def test_corrupt_rows_are_named(tmp_path):
    datasets.disable_progress_bars()
    as_dataset(tmp_path / "d")
    whole = datasets.load_from_disk(str(tmp_path / "d"))
    rows = [{"bytes": encoded(i), "path": None} for i in range(6)]
    rows[3] = {"bytes": b"no picture", "path": None}
    rows[5] = None
    features = whole["test"].features
    whole["test"] = datasets.Dataset.from_dict(
        {"image": rows, "label": [0, 1, 2] * 2}, features=features
    )
    whole.save_to_disk(str(tmp_path / "e"))
    with pytest.raises(DataError, match="2 image files cannot be read") as error:
        HubData(path=str(tmp_path / "e"), **SIZE).setup()
    assert f"{tmp_path / 'e'}, split test, row 3: not an image" in str(error.value)
    assert "row 5: the row has no picture" in str(error.value)


@pytest.mark.parametrize(
    ("cls", "arguments", "error", "message"),
    [
        (WebDatasetData, {}, DataError, r"data.train names no shards; expected their paths"),
        (WebDatasetData, {"train": "x.tar"}, DataError, "data.test names no shards"),
        (WebDatasetData, {"image_key": ""}, ValueError, "image_key='' and label_key='cls' name s"),
        (WebDatasetData, {"image_key": "jpg;cls"}, ValueError, "label_key='cls' is one of image_k"),
        (WebDatasetData, {"shards_at_once": -1}, ValueError, "shards_at_once must be at least 0"),
        (WebDatasetData, {"balanced_sampling": True}, ValueError, "with shards_at_once=0 all are"),
        (WebDatasetData, {"copy_shards": "yes"}, TypeError, "copy_shards must be true or false"),
        (HubData, {}, DataError, "data.path names no data set"),
        (HubData, {"path": "./none"}, DataError, "does not exist; expected a folder that save_to"),
    ],
)
def test_what_is_missing_or_wrong_is_named(cls, arguments, error, message):
    with pytest.raises(error, match=message):
        cls(**arguments).describe()


def test_a_shard_in_two_parts_is_refused(tmp_path):
    write_shards(tmp_path)
    with pytest.raises(DataError, match=r"train-000001\.tar is in data.train and in data.test"):
        WebDatasetData(
            train=f"{tmp_path}/train-*.tar", test=f"{tmp_path}/train-000001.tar"
        ).describe()


def test_a_class_that_only_tests_have_is_refused(tmp_path):
    write_shards(tmp_path)
    write_tar(tmp_path / "test.tar", samples(0, 9, classes=5))
    with pytest.raises(DataError, match=r"test\.tar: 000003 has the label '3', none of the 3 clas"):
        WebDatasetData(train=f"{tmp_path}/train-*.tar", test=f"{tmp_path}/test.tar").describe()


def test_what_parts_lack_and_what_is_not_read_is_said(tmp_path):
    write_tar(tmp_path / "train.tar", [*samples(0, 23), ("README", b"x"), ("a/._0.jpg", b"x")])
    write_tar(tmp_path / "test.tar", samples(0, 3, classes=2))
    (tmp_path / "classes.txt").write_text("cat\ndog\n\nemu\nfox \n", "utf-8")
    data = WebDatasetData(
        train=f"{tmp_path}/train.tar",
        test=f"{tmp_path}/test.tar",
        classes=f"{tmp_path}/classes.txt",
        **SIZE,
    )
    info = data.describe()
    assert info.classes == ("cat", "dog", "emu", "fox")
    assert "data.train has no images of fox" in info.source
    assert "data.test has no images of emu, fox" in info.source
    assert "not read, because hidden or of no sample: 2, such as " in info.source
    data.setup()
    assert data.info.source == info.source
    with pytest.raises(DataError, match=r"data.classes=none.txt: .* cannot be read as text"):
        WebDatasetData(
            train=f"{tmp_path}/train.tar", test=f"{tmp_path}/test.tar", classes="none.txt"
        ).describe()


def test_splits_of_other_classes_and_unused_ones(tmp_path):
    as_dataset(tmp_path / "d")
    whole = datasets.load_from_disk(str(tmp_path / "d"))
    whole["extra"] = whole["test"]
    other = datasets.ClassLabel(names=["emu", "gnu", "cat"])
    whole["test"] = whole["test"].cast_column("label", other)
    whole.save_to_disk(str(tmp_path / "e"))
    with pytest.raises(DataError, match="split test: row 4 has the label 'gnu', none of"):
        HubData(path=str(tmp_path / "e")).describe()
    whole["test"] = whole["extra"].filter(lambda row: row["label"] != 1)
    whole.save_to_disk(str(tmp_path / "f"))
    source = HubData(path=str(tmp_path / "f")).describe().source
    assert "the split test has no images of dog" in source
    assert "not read: the splits extra" in source
    with pytest.raises(DataError, match=r"says what its classes are .*; leave out data.classes"):
        HubData(path=str(tmp_path / "f"), classes=["a", "b"]).describe()


def test_numbers_without_names_are_the_classes_that_are_found(tmp_path):
    as_dataset(tmp_path / "d")
    whole = datasets.load_from_disk(str(tmp_path / "d"))
    whole = whole.cast_column("label", datasets.Value("int32"))
    whole.save_to_disk(str(tmp_path / "e"))
    options = {"path": str(tmp_path / "e"), "label_column": "label"}
    assert HubData(**options).describe().classes == ("0", "1", "2")
    assert HubData(**options, classes=list("abcd")).describe().classes == ("a", "b", "c", "d")
    with pytest.raises(DataError, match=r"row 20 has the label 2, expected 0\.\.1"):
        HubData(**options, classes=["a", "b"]).describe()


@pytest.mark.parametrize("copy", [False, True])
def test_shards_in_a_bucket_train_as_those_on_disk(tmp_path, copy):
    import fsspec

    system = fsspec.filesystem("memory")
    where = as_shards(tmp_path)
    for path in tmp_path.iterdir():
        system.pipe(f"/shelf/{path.name}", path.read_bytes())
    there = {part: f"memory://shelf/{part}-*.tar" for part in PARTS}
    options = {**SIZE, "hold": "stream", "workers": 3}
    expected = batches(WebDatasetData(**where, **options))
    found = batches(WebDatasetData(**there, **options, copy_shards=copy))
    system.rm("/shelf", recursive=True)
    assert_same(found, expected)
