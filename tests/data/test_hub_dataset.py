"""Data sets of the datasets library: folders, splits, columns, labels; odd ones are named."""

import json
import shutil
import sys

import numpy as np
import pytest
from shard_files import encoded

from cvattn.data import DataError
from cvattn.data.image_files import ImageError, read_picture
from cvattn.data.images import hub_dataset
from cvattn.data.images.hub_dataset import columns_of, labels_of, open_dataset, splits_of
from cvattn.data.images.hub_source import HubSource

datasets = pytest.importorskip("datasets", reason="pip install -e '.[hf]'")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets.disable_progress_bars()


def table(count=7, names=("cat", "dog", "emu"), start=0, **columns):
    """A split of small pictures with classes 0, 1, 2, 0, ..."""
    values = {
        "image": [{"bytes": encoded(start + i), "path": None} for i in range(count)],
        "label": [(start + i) % len(names) for i in range(count)],
        **{name: column for name, (column, _) in columns.items()},
    }
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=list(names)),
        **{name: feature for name, (_, feature) in columns.items()},
    }
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))


def saved(path, **splits):
    datasets.DatasetDict(splits).save_to_disk(str(path))
    return str(path)


def source(split):
    image, label = columns_of(split, None, None, "x")
    codes, _ = labels_of(split, label, "x")
    import torch

    return HubSource(split, image, torch.from_numpy(codes), "x, split train")


def test_rows_are_what_was_saved(tmp_path):
    whole = open_dataset(saved(tmp_path / "d", train=table(7)), None, None)
    ours = source(whole["train"])
    assert len(ours) == 7
    assert [ours.file(i).read() for i in range(7)] == [encoded(i) for i in range(7)]
    assert ours.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert ours.name(3) == "x, split train, row 3"


def test_rows_of_a_shuffled_and_filtered_split(tmp_path):
    split = table(11).select([9, 2, 5])
    split = open_dataset(saved(tmp_path / "d", train=split), None, None)["train"].select([2, 0])
    ours = source(split)
    assert [ours.file(i).read() for i in range(2)] == [encoded(5), encoded(9)]
    assert ours.labels.tolist() == [2, 0]


def test_files_of_their_own_and_rows_without_one(tmp_path):
    path = tmp_path / "one.jpg"
    path.write_bytes(encoded(1))
    rows = [{"bytes": None, "path": str(path)}, {"bytes": None, "path": None}, None]
    split = table(3).remove_columns("image").add_column("image", rows, feature=datasets.Image())
    ours = source(split)
    assert np.asarray(read_picture(ours.file(0), 3)).shape == (20, 30, 3)
    for row in (1, 2):
        with pytest.raises(ImageError, match="the row has no picture"):
            ours.file(row)
    ours.identity(times=True)


def test_identity_is_the_data_and_with_times_the_copy(tmp_path):
    saved(tmp_path / "a", train=table(5))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    saved(tmp_path / "c", train=table(5, start=3))
    a, b, c = (source(open_dataset(str(tmp_path / n), None, None)["train"]) for n in "abc")
    assert a.identity(times=False) == b.identity(times=False)
    assert a.identity(times=True) != b.identity(times=True)
    assert a.identity(times=False) != c.identity(times=False)


@pytest.mark.parametrize(
    ("there", "given", "expected"),
    [
        (["train", "test"], {}, ("train", None, "test")),
        (["train", "valid", "test"], {}, ("train", "valid", "test")),
        (["train", "dev", "test", "extra"], {}, ("train", "dev", "test")),
        (["training", "validation", "test"], {}, ("training", "validation", "test")),
        (["a", "b", "c"], {"train": "b", "val": "c", "test": "a"}, ("b", "c", "a")),
        (
            ["train", "dev", "validation"],
            {"val": "dev", "test": "validation"},
            ("train", "dev", "validation"),
        ),
    ],
)
def test_splits_by_their_usual_names(there, given, expected):
    found = splits_of(there, {"train": None, "val": None, "test": None, **given})
    assert tuple(found[part] for part in ("train", "val", "test")) == expected


@pytest.mark.parametrize(
    ("there", "given", "message"),
    [
        (["train"], {}, "no split 'test' but train; data.test names the one to test with"),
        (["test"], {}, "no split 'train' but test; data.train names the one to train with"),
        (["train", "val", "dev", "test"], {}, "splits val, dev could each be data.val"),
        (["train", "test"], {"val": "tset"}, "data.val=tset: no such split; did you mean test"),
        (["train", "test"], {"val": "test"}, "'test' is used for two parts"),
    ],
)
def test_splits_that_are_not_clear(there, given, message):
    with pytest.raises(DataError, match=message):
        splits_of(there, {"train": None, "val": None, "test": None, **given})


def test_columns_by_their_kind_and_by_name():
    coarse = ([0] * 7, datasets.ClassLabel(names=["a", "b"]))
    number = (list(range(7)), datasets.Value("int32"))
    split = table(7, coarse=coarse, number=number, text=(["x"] * 7, datasets.Value("string")))
    with pytest.raises(DataError, match=r"several columns of classes .*: label, coarse; "):
        columns_of(split, None, None, "x")
    for label in ("label", "coarse", "number", "text"):
        assert columns_of(split, None, label, "x") == ("image", label)
    for image, label, message in (
        ("label", "label", "data.image_column=label is no column of pictures"),
        ("picture", "label", r"no such column; it has image \(Image.*label \(ClassLabel"),
        (None, "image", "data.label_column=image is no column of classes"),
    ):
        with pytest.raises(DataError, match=message):
            columns_of(split, image, label, "x")
    with pytest.raises(DataError, match=r"no column of classes .*; data.label_column names one of"):
        columns_of(split.remove_columns(["label", "coarse"]), None, None, "x")
    with pytest.raises(DataError, match=r"no column of pictures; data.image_column names one of"):
        columns_of(split.remove_columns("image"), None, "label", "x")
    floats = table(7, weight=([0.5] * 7, datasets.Value("float32")))
    with pytest.raises(DataError, match=r"data.label_column=weight is no column of classes"):
        columns_of(floats, None, "weight", "x")


def test_labels_as_they_are_written():
    split = table(
        4,
        n=([7, 3, 7, 11], datasets.Value("int8")),
        s=(["b", "a", "b", "c"], datasets.Value("string")),
    )
    for column, texts in (("label", "cat dog emu cat"), ("n", "7 3 7 11"), ("s", "b a b c")):
        codes, names = labels_of(split, column, "x")
        assert [names[code] for code in codes] == texts.split()


@pytest.mark.parametrize("value", [-1, None])
def test_rows_without_a_label_are_named(value):
    feature = datasets.ClassLabel(names=["a", "b"])
    split = table(4, other=([0, 1, value, 1], feature))
    with pytest.raises(DataError, match=rf"x: 1 rows have no label in 'other', .* row 2 \({value}"):
        labels_of(split, "other", "x")


def truncate(folder):
    (path,) = (folder / "train").glob("*.arrow")
    path.write_bytes(path.read_bytes()[:2000])


def lose(folder):
    next((folder / "train").glob("*.arrow")).unlink()


def spoil_state(folder):
    (folder / "train" / "state.json").write_text("{")


def forget_split(folder):
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "gone"]}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (truncate, "is damaged: "),
        (lose, "is damaged|was not written by save_to_disk"),
        (spoil_state, "is damaged: "),
        (forget_split, "is damaged|was not written by save_to_disk"),
        (lambda f: (f / "dataset_dict.json").unlink(), r"was not written by save_to_disk .*load_d"),
    ],
)
def test_damaged_folders_are_named(tmp_path, change, message):
    path = saved(tmp_path / "d", train=table(5), test=table(3))
    change(tmp_path / "d")
    with pytest.raises(DataError, match=f"data.path={path} ({message})"):
        open_dataset(path, None, None)


def test_names_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("/nowhere/d", "./d", "a/b/c", "s3://bucket/d"):
        with pytest.raises(DataError, match="does not exist; expected a folder that save_to_disk"):
            open_dataset(path, None, None)
    asked = []
    whole = datasets.DatasetDict({"train": table(3)})
    monkeypatch.setattr(
        datasets, "load_dataset", lambda path, **more: (asked.append((path, more)), whole)[1]
    )
    monkeypatch.setenv("CVATTN_OFFLINE", "1")
    with pytest.raises(DataError, match="CVATTN_OFFLINE forbids to look for it on the Hub"):
        open_dataset("owner/birds", None, None)
    assert not asked
    monkeypatch.delenv("CVATTN_OFFLINE")
    assert open_dataset("owner/birds", "small", "v2") == whole
    assert asked == [("owner/birds", {"name": "small", "revision": "v2"})]

    def fail(*args, **more):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match="could not be had from the Hub: no route"):
        open_dataset("owner/birds", None, None)


def test_config_and_revision_are_of_the_hub(tmp_path):
    path = saved(tmp_path / "d", train=table(3))
    for given in (("small", None), (None, "v2")):
        with pytest.raises(DataError, match=r"data.config and data.revision are of data"):
            open_dataset(path, *given)


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"data=hf needs datasets .*pip install 'cvattn\[hf\]'"):
        hub_dataset.open_dataset("x", None, None)
