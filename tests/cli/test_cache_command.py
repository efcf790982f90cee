"""``cvattn cache``: what is kept is listed with its source, and removed when asked."""

import os
import time

import numpy as np
import pytest

from cvattn.cli import main
from cvattn.data.cache import cached
from cvattn.data.images.record_file import write_records


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A file of data.hold=mapped, one of CIFAR's kind, a lock, half a file and somebody's own."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("CVATTN_CACHE", str(folder))
    source = tmp_path / "source"
    source.write_text("")
    cached("cifar10", [source], "decoder", {"a": (1, 2)}, lambda: {"a": np.zeros((1, 2), np.uint8)})
    facts = {"source": "/some/\x1b[31mfolder", "part": "train"}
    pixels = np.zeros((1000, 1000, 3), np.uint8)
    write_records(folder / "folder-train-0123456789abcdef.images", facts, [pixels])
    (folder / "folder-train-0123456789abcdef.images.lock").touch()
    (folder / "folder-val-0000000000000000.images.1a2b3c4d.tmp").write_bytes(b"half")
    (folder / "notes.txt").write_text("somebody's")
    return folder


def names(folder):
    return sorted(path.name.split("-")[0] for path in folder.iterdir())


def test_the_list_says_what_how_much_when_and_of_what(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    os.utime(folder / "folder-train-0123456789abcdef.images", (0, time.time() - 86400 * 400))
    assert main(["cache"]) == 0
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["name", "size", "last", "used", "decoded", "from"]
    first, second = lines[1], lines[2]  # the last used first
    assert first[0].startswith("cifar10-")
    assert first[-2:] == ["not", "recorded"]
    assert second[:3] == ["folder-train-0123456789abcdef", "2.9", "MiB"]
    assert second[3] == time.strftime("%Y-%m-%d", time.localtime(time.time() - 86400 * 400))
    assert second[-2:] == [r"/some/\x1b[31mfolder,", "train"]
    assert "\x1b" not in text
    assert names(folder) == ["cifar10", "folder", "folder", "notes.txt"]  # the half file is gone


def test_one_is_removed_by_its_name_and_all_without(folder, capsys):
    assert main(["cache", "--clean", "folder-train-0123456789abcdeg"]) == 2
    assert "did you mean folder-train-0123456789abcdef?" in capsys.readouterr().err
    assert main(["cache", "--clean", "folder-train-0123456789abcdef"]) == 0
    assert "(2.9 MiB)" in capsys.readouterr().out
    assert names(folder) == ["cifar10", "notes.txt"]
    assert main(["cache", "--clean"]) == 0
    assert names(folder) == ["notes.txt"]
    assert main(["cache", "--clean"]) == 0
    assert "nothing is kept" in capsys.readouterr().out


def test_a_damaged_file_is_listed_as_such(folder, capsys):
    (folder / "folder-test-0000000000000000.images").write_bytes(b"x" * 100)
    assert main(["cache"]) == 0
    assert "damaged: it does not begin" in " ".join(capsys.readouterr().out.split())


def test_no_folder_is_no_error(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CVATTN_CACHE", str(tmp_path / "none"))
    assert main(["cache"]) == 0
    assert "nothing is kept" in capsys.readouterr().out
    monkeypatch.setenv("CVATTN_CACHE", "off")
    assert main(["cache", "--clean"]) == 0
    assert "nothing is kept" in capsys.readouterr().out
