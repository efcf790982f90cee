"""Tables of labels: their forms, what is wrong with them, and the batches that come of them."""

import pytest
import torch
from label_tables import COLOURS, COUNTS, draw_labels, write
from PIL import Image

from cvattn.data import DataError, LabelsCSVData


def make(root, **options):
    return LabelsCSVData(root=root, image_size=[12, 20], batch_size=7, **options)


@pytest.fixture
def root(tmp_path):
    return draw_labels(tmp_path / "of mine")


@pytest.mark.parametrize("form", ["columns", "names", "one table"])
def test_three_forms_say_the_same(tmp_path, form):
    data = make(draw_labels(tmp_path, form), mean=[0.5] * 3, std=[0.2] * 3)
    info = data.describe()
    order = sorted(COLOURS) if form == "names" else list(COLOURS)
    assert info.classes == tuple(order)
    assert (info.train_size, info.val_size, info.test_size) == tuple(COUNTS.values())
    assert (info.target, info.meta()["several_labels"]) == ("labels", True)
    for part in ("train", "val", "test"):
        images, labels = data.split(part).images, data.split(part).labels
        assert labels.dtype == torch.float32
        assert labels.shape == (COUNTS[part], 3)
        for place, (name, colour) in enumerate(COLOURS.items()):
            bar = images[:, :, 4 * place + 2].double().mean(-1)  # (N, C)
            there = ((bar - torch.tensor(colour)).abs() < 1).all(1)
            assert torch.equal(labels[:, order.index(name)], there.float())
    batch = next(iter(data.train_dataloader()))
    assert batch[0].shape == (7, 3, 12, 20)
    assert batch[1].shape == (7, 3)


def test_without_a_val_table_a_tenth_validates_by_name(root, tmp_path):
    (root / "val.csv").unlink()
    data = make(root)
    assert (data.describe().train_size, data.describe().val_size) == (54, 7)
    chosen = [path.name for path, _ in data._read_tables().files["val"]]
    moved = root.rename(tmp_path / "elsewhere")
    assert [path.name for path, _ in make(moved)._read_tables().files["val"]] == chosen


@pytest.mark.parametrize("hold", ["memory", "mapped", "stream"])
def test_however_they_are_held(root, hold):
    data = make(root, hold=hold, mean=[0.5] * 3, std=[0.2] * 3)
    plain = make(root, mean=[0.5] * 3, std=[0.2] * 3)
    for ours, theirs in zip(data.train_dataloader(), plain.train_dataloader(), strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


def test_the_fingerprint_is_of_the_labels_too(root):
    first = make(root)
    first.setup()
    again = make(root)
    again.setup()
    assert again.info.fingerprint == first.info.fingerprint
    lines = (root / "test.csv").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.endswith(",1"))
    lines[at] = lines[at][:-1] + "0"
    (root / "test.csv").write_text("\n".join(lines))
    changed = make(root)
    changed.setup()
    assert changed.info.fingerprint != first.info.fingerprint


def test_skipped_files_take_their_labels_with_them(root):
    (root / "pictures" / "test 3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"test 3\.png: not an image"):
        make(root).setup()
    data = make(root, on_corrupt="skip")
    whole = make(draw_labels(root / "whole"))
    with pytest.warns(UserWarning, match=r"test 3\.png"):
        data.setup()
    keep = torch.arange(COUNTS["test"]) != 3
    assert torch.equal(data.split("test").labels, whole.split("test").labels[keep])
    only = root / "only"
    Image.new("RGB", (9, 9)).save(root / "a.png")
    only.mkdir()
    for name in ("a.png", "b.png", "c.png", "d.png"):
        Image.new("RGB", (9, 9)).save(only / name)
    (only / "b.png").write_bytes(b"no image")
    write(only / "train.csv", ["file", "x", "y"], [("a.png", 1, 0), ("b.png", 0, 1)])
    write(only / "val.csv", ["file", "x", "y"], [("c.png", 1, 1)])
    write(only / "test.csv", ["file", "x", "y"], [("d.png", 1, 1)])
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(DataError, match="train: no readable image of y"),
    ):
        make(only, on_corrupt="skip").setup()


def test_odd_but_good_tables(tmp_path):
    """A byte-order mark, spaces, quotes, commas in names, empty lines, images without a label."""
    for name in ("a, b.png", "c.png", "d.png", "e.png", "f.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    text = '\ufefffile , two words, "x,y"\n"a, b.png", 1 ,0\n\nc.png,0,1\n ,,\n./d.png,0,0\n'
    (tmp_path / "train.csv").write_text(text, encoding="utf-8")
    (tmp_path / "val.csv").write_text('file,"x,y",two words\ne.png,1,0\n')  # in another order
    (tmp_path / "test.csv").write_text('file,two words,"x,y"\r\nf.png,1,1\r\n')
    data = make(tmp_path)
    info = data.describe()
    assert info.classes == ("two words", "x,y")
    assert data.split("train").labels.tolist() == [[1, 0], [0, 1], [0, 0]]
    assert data.split("val").labels.tolist() == [[0, 1]]
    assert "no image of val has the label two words" in info.source


def table(root, name, text):
    (root / name).write_text(text)


NAMED = "file,labels\n"
WRONG = [
    (lambda r: (r / "test.csv").unlink(), r"test\.csv is missing.*there are: train\.csv, val\.csv"),
    (lambda r: table(r, "labels.csv", "file,split,a\n"), r"has labels\.csv and train\.csv"),
    (lambda r: table(r, "train.csv", ""), "no column 'file' among"),
    (lambda r: table(r, "train.csv", "image,red\n"), "no column 'file' among image, red; expected"),
    (lambda r: table(r, "train.csv", "file;red;green\na;1;0\n"), "separated by semicolons"),
    (lambda r: table(r, "train.csv", "file\n"), "no labels; expected a first line"),
    (lambda r: table(r, "train.csv", "file,red,red\n"), "the first line has red twice"),
    (lambda r: table(r, "train.csv", "file,red,\n"), "a column without a name"),
    (lambda r: table(r, "train.csv", "file,split,red\n"), "a column 'split', and the table is for"),
    (lambda r: table(r, "train.csv", "file,labels,red\n"), "unknown columns red: beside 'labels'"),
    (lambda r: table(r, "train.csv", "file,red\nx.png,1,0\n"), "line 2: 3 values for 2 columns"),
    (lambda r: table(r, "train.csv", 'file,red\n"x.png,1\n'), "cannot be read as a table"),
    (lambda r: (r / "train.csv").write_bytes(b"file,r\xff\n"), "cannot be read as a table"),
    (
        lambda r: table(r, "train.csv", "file,red,green\nx.png,yes,0\ny.png,1,2\n"),
        r"has 2 mistakes:\n.*line 2: red is 'yes'; expected 0 or 1\n.*line 3: green is '2'",
    ),
    (lambda r: table(r, "train.csv", "file,red\n/x.png,1\n"), "a name from the folder on"),
    (
        lambda r: table(r, "test.csv", "file,red,green,bleu\npictures/test 0.png,1,0,0\n"),
        r"test\.csv has the labels in the columns bleu, green, red, train\.csv has in the columns",
    ),
    (lambda r: table(r, "test.csv", NAMED), "has the labels in one column, train.csv has in the"),
    (
        lambda r: table(r, "val.csv", "file,red,green,blue\npictures/none.png,1,0,0\n"),
        r"1 images of the tables in .* are missing .*\n.*val\.csv, line 2: there is no file .*none",
    ),
    (
        lambda r: table(r, "val.csv", "file,red,green,blue\n./pictures/test 0.png,1,0,0\n"),
        r"1 images come twice .*\n.*test\.csv, line 2: pictures/test 0\.png was named in val\.csv",
    ),
    (lambda r: table(r, "test.csv", "file,red,green,blue\n"), "no image is for test; there are 61"),
    (
        lambda r: table(r, "train.csv", "file,red,green,blue\npictures/train 0.png,1,0,1\n"),
        "no training image has the label green",
    ),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_is_wrong_is_named(root, change, message):
    change(root)
    with pytest.raises(DataError, match=message):
        make(root).describe()


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("a.png,x;y\nb.png,y|z\n", "c.png,zz\n", r"'zz', which no training image has"),
        ("a.png,x\nb.png,x\n", "c.png,x\n", r"1 labels \(x\); expected 2 or more.*data=folder"),
        ("a.png,x;y\n", "c.png,x\n", "one training image, and nothing to validate with"),
    ],
)
def test_labels_in_one_column(tmp_path, train, test, message):
    for name in "abc":
        Image.new("RGB", (9, 9)).save(tmp_path / f"{name}.png")
    table(tmp_path, "train.csv", NAMED + train)
    table(tmp_path, "test.csv", NAMED + test)
    with pytest.raises(DataError, match=message):
        make(tmp_path).describe()


def test_one_table_says_what_each_row_is_for(tmp_path):
    draw_labels(tmp_path, "one table")
    text = (tmp_path / "labels.csv").read_text()
    (tmp_path / "labels.csv").write_text(text.replace(",val,", ",valid,", 1))
    with pytest.raises(DataError, match=r"split 'valid' is none of train, val, test; did you mean"):
        make(tmp_path).describe()
    (tmp_path / "labels.csv").write_text(text.replace("split", "part"))
    with pytest.raises(DataError, match=r"no column 'split', which says train, val or test"):
        make(tmp_path).describe()


def test_a_folder_without_tables(tmp_path):
    with pytest.raises(DataError, match=r"train\.csv is missing.*there are: no tables"):
        make(tmp_path).describe()
    with pytest.raises(DataError, match=r"is not a folder; expected one with train\.csv"):
        make(tmp_path / "none").describe()
