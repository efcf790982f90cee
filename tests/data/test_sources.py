"""Sources of pictures: which they are, wherever they lie, and what of them is chosen."""

import os
import shutil

import pytest
import torch

from cvattn.data import DataError
from cvattn.data.images.sources import Chosen, FileSource


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    for name in ("b/1.png", "a/2.png", "a/ü 3.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def source(root):
    paths = sorted(root.rglob("*.png"))
    return FileSource(root, paths, torch.arange(len(paths)))


def identities(root):
    return [source(root).identity(times=times) for times in (False, True)]


def test_an_identity_is_of_names_below_the_folder_sizes_and_times(root, tmp_path):
    before = identities(root)
    assert before == identities(root)
    assert before[0] != before[1]
    copy = shutil.copytree(root, tmp_path / "copy")  # with its times
    assert identities(copy) == before
    os.utime(copy / "a" / "2.png", ns=(0, 5))
    assert identities(copy)[0] == before[0]
    assert identities(copy)[1] != before[1]
    for change in (
        lambda: (copy / "a" / "2.png").write_bytes(b"longer than it was"),
        lambda: (copy / "a" / "2.png").rename(copy / "a" / "4.png"),
        lambda: (copy / "b" / "1.png").unlink(),
    ):
        last = identities(copy)
        change()
        assert all(new != old for new, old in zip(identities(copy), last, strict=True))


def test_a_file_that_is_gone_is_named(root):
    found = source(root)
    (root / "a" / "2.png").unlink()
    with pytest.raises(DataError, match=r"a/2\.png cannot be read: No such file"):
        found.identity(times=False)


def test_chosen_pictures_are_a_source_of_their_own(root):
    whole = source(root)
    part = Chosen(whole, torch.tensor([2, 0]))
    assert len(part) == 2
    assert part.labels.tolist() == [2, 0]
    assert [part.file(0), part.name(1)] == [whole.file(2), whole.name(0)]
    others = [Chosen(whole, torch.tensor(at)) for at in ([0, 2], [2], [2, 0, 1])]
    known = {each.identity(times=True) for each in (whole, part, *others)}
    assert len(known) == 5
    again = Chosen(source(root), torch.tensor([2, 0]))
    assert again.identity(times=True) == part.identity(times=True)


def test_labels_belong_to_the_files(root):
    with pytest.raises(ValueError, match="3 files have 2 labels"):
        FileSource(root, sorted(root.rglob("*.png")), torch.arange(2))
