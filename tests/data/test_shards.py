"""Shards: read as webdataset reads them, any sample at any time; odd ones are named."""

import bz2
import dataclasses
import gc
import gzip
import io
import itertools
import os
import shutil
import tarfile
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from shard_files import encoded, samples, write_shards, write_tar

from cvattn.data import DataError
from cvattn.data.image_files import read_picture
from cvattn.data.images import shard_cache
from cvattn.data.images.label_names import LabelNames
from cvattn.data.images.shard_cache import copies_of, indices_of
from cvattn.data.images.shard_index import Names
from cvattn.data.images.shard_places import shards_of
from cvattn.data.images.shards import ShardSource
from cvattn.data.kept import kept_files, remove

wds = pytest.importorskip("webdataset", reason="pip install -e '.[shards]'")
KEYS = ("jpg", "jpeg", "png", "webp")


def source(given, keys=KEYS, label="cls", classes=None):
    shards = shards_of(given, "data.train")
    indices = indices_of(shards, keys, label)
    found = sorted({text for index in indices for text in index.texts})
    return ShardSource(shards, indices, LabelNames.of(found, classes, "train"))


def contents(ours):
    return [(ours.key(i), ours.file(i).read(), ours.labels[i].item()) for i in range(len(ours))]


def test_it_holds_what_webdataset_reads(tmp_path):
    paths = write_shards(tmp_path)
    ours = source(f"{tmp_path}/train-{{000000..000002}}.tar")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves shards open
        theirs = list(wds.WebDataset([str(p) for p in paths], shardshuffle=False))
        gc.collect()
    assert contents(ours) == [(s["__key__"], s["jpg"], int(s["cls"])) for s in theirs]
    assert len(ours) == 23
    assert ours.shard_of.bincount().tolist() == [7, 5, 11]
    assert ours.name(7) == f"{paths[1]}: 000007"


def test_any_sample_at_any_time_by_several_threads(tmp_path):
    write_shards(tmp_path)
    ours = source(f"{tmp_path}/*.tar")
    expected = contents(ours)
    wrong = []

    def read(seed):
        for i in torch.randperm(23, generator=torch.Generator().manual_seed(seed)).tolist():
            if ours.file(i).read() != expected[i][1]:
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("tar_format", [0, 1, 2], ids=["ustar", "gnu", "pax"])
def test_nested_long_and_foreign_names(tmp_path, tar_format):
    long = "d" * 80 + "/" + "e" * 90
    names = ["a/b c/1", "./x/2", "ü/ñ 3", f"{long}/4", "with.dot/5"]
    if tar_format:  # ustar has at most 100 + 155 bytes
        names.append("f" * 300)
    files = []
    for at, name in enumerate(names):
        files += [(f"{name}.JPG", encoded(at)), (f"{name}.cls", b"%d\n" % (at % 2))]
    write_tar(tmp_path / "odd [1] {x}.tar", files, format=tar_format)
    ours = source(str(tmp_path / "odd [1] {x}.tar"))
    assert [ours.key(i) for i in range(len(ours))] == names
    assert [ours.file(i).read() for i in range(len(ours))] == [d for n, d in files[::2]]


def test_files_of_a_sample_need_not_stand_together(tmp_path):
    files = samples(0, 4)
    write_tar(tmp_path / "a.tar", files[::2] + files[1::2])
    write_tar(tmp_path / "b.tar", files)
    assert contents(source(f"{tmp_path}/a.tar")) == contents(source(f"{tmp_path}/b.tar"))


def test_of_several_pictures_the_first_kind_is_read(tmp_path):
    files = samples(0, 3)
    files += [(f"{i:06}.png", encoded(10 + i, kind="PNG")) for i in range(3)]
    write_tar(tmp_path / "a.tar", files)
    assert source(f"{tmp_path}/a.tar", ("png", "jpg")).file(1).read()[:4] == b"\x89PNG"
    assert source(f"{tmp_path}/a.tar", ("jpg", "png")).file(1).read()[:2] == b"\xff\xd8"


def test_what_is_not_read_is_counted(tmp_path):
    extra = [
        ("folder/", b""),
        ("README", b"x"),
        ("notes.txt", b"x"),
        ("a/._0.jpg", b"x"),
        (".hidden/0.jpg", b"x"),
        ("__meta__/0.jpg", b"x"),
    ]
    write_tar(tmp_path / "a.tar", samples(0, 3) + extra)
    (index,) = indices_of(shards_of(f"{tmp_path}/a.tar", "data.train"), KEYS, "cls")
    assert len(index.keys) == 3
    assert index.left_count == 5
    assert set(index.left) <= {name for name, _ in extra}


def test_names_are_a_sequence():
    names = ["", "a", "ñ", "a" * 50, "\udcff"]
    ours = Names.of(names)
    assert list(ours) == names
    assert ours[1:4] == names[1:4]


# Places


def test_braces_wild_cards_and_lists_name_the_same(tmp_path):
    paths = [str(p) for p in write_shards(tmp_path)]
    for given in (
        paths,
        f"{tmp_path}/train-{{000000..000002}}.tar",
        f"{tmp_path}/train-*.tar",
        f"{tmp_path}/train-00000[0-2].tar",
        [f"{tmp_path}/train-{{000000..000001}}.tar", f"{tmp_path}/train-*2.tar"],
        f"file://{tmp_path}/train-*.tar",
    ):
        assert [each.address for each in shards_of(given, "data.train")] == paths


def test_relative_paths_and_home(tmp_path, monkeypatch):
    (path,) = write_shards(tmp_path, (2,))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("train-000000.tar", "~/train-000000.tar", "./train-*.tar"):
        assert shards_of(given, "data.train")[0].address == str(path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "{0}/train-{{000000..000004}}.tar",
            r"2 of 5 shards are missing: .*000003\.tar, .*000004"
            r".*; in .* are: train-000000\.tar",
        ),
        ("{0}/valid-*.tar", r"valid-\*\.tar matches nothing; in .* are: train-000000\.tar"),
        ("{0}/none/a.tar", "none is no folder"),
        ("{0}", r"is a folder; name its shards: .*/\*\.tar"),
        ("{0}/train-{{000000..000002.tar", "a brace is not closed"),
        (["{0}/train-*.tar", "{0}/train-000001.tar"], r"names a shard twice: .*train-000001\.tar"),
        ([], "data.train names no shard"),
        ("pipe:cat {0}/train-000000.tar", "commands are not run"),
        ("nosuch://bucket/a.tar", "nosuch://bucket/a.tar cannot be read: Protocol not known"),
        ("memory://none/a.tar", "1 of 1 shards are missing: memory://none/a.tar"),
        ("memory://none/*.tar", r"memory://none/\*\.tar matches nothing"),
    ],
)
def test_places_that_are_wrong(tmp_path, given, message):
    write_shards(tmp_path)
    given = (
        given.format(tmp_path) if isinstance(given, str) else [g.format(tmp_path) for g in given]
    )
    with pytest.raises(DataError, match=message):
        shards_of(given, "data.train")


def test_a_server_is_not_asked_while_downloads_are_forbidden(monkeypatch):
    monkeypatch.setenv("CVATTN_OFFLINE", "1")
    with pytest.raises(DataError, match=r"s3://b/a\.tar is on a server, and CVATTN_OFFL"):
        shards_of("s3://b/a.tar", "data.train")


# Odd shards


def member(path, at):
    with tarfile.open(path) as archive:
        return archive.getmembers()[at]


def cut_in_a_file(path):
    path.write_bytes(path.read_bytes()[: member(path, 2).offset_data + 10])


def cut_between_files(path):
    """After the first sample; tarfile and webdataset end there without a word."""
    path.write_bytes(path.read_bytes()[: member(path, 2).offset])


def damage_a_header(path):
    at, data = member(path, 2).offset, bytearray(path.read_bytes())
    data[at : at + 100] = b"\x7f" * 100
    path.write_bytes(data)


def change_names(path, change):
    write_tar(path, [(change(name), data) for name, data in samples(7, 12)])


ODD = {
    "0 bytes": (lambda p: p.write_bytes(b""), r"is empty \(0 bytes\)"),
    "no samples": (lambda p: write_tar(p, []), "holds no samples"),
    "no pictures or labels": (
        lambda p: write_tar(p, [("a.txt", b"x"), ("b.json", b"{}")]),
        r"holds no samples: nothing in it ends in \.jpg .* or \.cls; it has a\.txt, b\.json",
    ),
    "cut in a file": (cut_in_a_file, "is truncated, damaged or no tar archive: unexpected end"),
    "cut between files": (cut_between_files, "is truncated: it ends at byte"),
    "damaged header": (damage_a_header, r"is damaged.* at byte \d+: no file's header is there"),
    "two in one": (
        lambda p: p.write_bytes(p.read_bytes() * 2),
        "several archives in one, at byte .*: something follows its end mark",
    ),
    "no labels": (
        lambda p: write_tar(p, [f for f in samples(7, 12) if f[0].endswith("jpg")]),
        r"5 of 5 samples have no label \(\.cls\), such as '000007', which has \.jpg; "
        "data.label_key",
    ),
    "one label lost": (
        lambda p: write_tar(p, samples(7, 12)[:-1]),
        "1 of 5 samples have no label .* such as '000011'",
    ),
    "one picture lost": (
        lambda p: write_tar(p, samples(7, 12)[1:]),
        r"1 of 5 samples have no picture .* such as '000007', which has \.cls; data.image_key",
    ),
    "other suffixes": (
        lambda p: write_tar(p, samples(7, 12, image="ppm", label="label")),
        r"holds no samples: .*; it has 000007\.ppm",
    ),
    "a file twice": (
        lambda p: write_tar(p, samples(7, 12) + samples(7, 8)),
        r"000007\.jpg is there twice",
    ),
    "a name of the other case": (
        lambda p: write_tar(p, [*samples(7, 12), ("000007.JPG", b"x")]),
        r"000007\.JPG is there twice",
    ),
    "label empty": (
        lambda p: write_tar(p, [*samples(7, 8), ("a.jpg", encoded(0)), ("a.cls", b" \n")]),
        r"a\.cls is empty; expected a label",
    ),
    "label binary": (
        lambda p: write_tar(p, [*samples(7, 8), ("a.jpg", encoded(0)), ("a.cls", b"\xff\xfe\x00")]),
        r"a\.cls is no text",
    ),
    "label long": (
        lambda p: write_tar(p, [*samples(7, 8), ("a.jpg", encoded(0)), ("a.cls", b"x" * 5000)]),
        r"a\.cls has 5000 bytes; expected a label",
    ),
    "no tar": (lambda p: p.write_bytes(encoded(1) * 40), "is truncated, damaged or no tar archive"),
    "gzip": (
        lambda p: p.write_bytes(gzip.compress(p.read_bytes())),
        r"is compressed \(gzip\): .*decompress it",
    ),
    "bzip2": (lambda p: p.write_bytes(bz2.compress(p.read_bytes())), r"is compressed \(bzip2\)"),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_shards_are_named(tmp_path, odd):
    paths = write_shards(tmp_path)
    change, message = ODD[odd]
    change(paths[1])
    for _ in range(2):  # and nothing of it is kept
        with pytest.raises(DataError, match=rf"{paths[1].name}.*{message}"):
            source(f"{tmp_path}/*.tar")


@pytest.mark.parametrize("kind", [b"1", b"2"], ids=["hard", "symbolic"])
def test_links_are_refused(tmp_path, kind):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in samples(0, 2):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("000002.jpg")
        link.type, link.linkname = kind, "000001.jpg"
        archive.addfile(link)
    with pytest.raises(DataError, match=r"000002\.jpg is a link"):
        source(str(path))


# Labels


def labelled(tmp_path, labels):
    files = []
    for at, label in enumerate(labels):
        files += [(f"{at:03}.jpg", encoded(at)), (f"{at:03}.cls", label.encode())]
    write_tar(tmp_path / "a.tar", files)
    return str(tmp_path / "a.tar")


@pytest.mark.parametrize(
    ("labels", "classes", "names", "expected"),
    [
        (["5", "10", "2", "5"], None, ("2", "5", "10"), [1, 2, 0, 1]),
        (["005", "5", "2"], None, ("2", "5"), [1, 1, 0]),
        (["red", "blue", "red"], None, ("blue", "red"), [1, 0, 1]),
        (["2", "0", "1"], ["a", "b", "c", "d"], ("a", "b", "c", "d"), [2, 0, 1]),
        (["blue", "red"], ["red", "green", "blue"], ("red", "green", "blue"), [2, 0]),
        (["3", "7"], ["7", "3"], ("7", "3"), [1, 0]),
    ],
)
def test_labels_are_numbers_or_names(tmp_path, labels, classes, names, expected):
    ours = source(labelled(tmp_path, labels), classes=classes)
    assert ours.labels.tolist() == expected
    found = sorted(set(labels))
    assert LabelNames.of(found, classes, "train").classes == names


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (["0", "3", "1"], ["a", "b", "c"], r"a\.tar: 001 has the label 3, expected 0\.\.2"),
        (["0", "-1"], ["a", "b", "c"], r"001 has the label -1, expected 0\.\.2"),
        (["0", "-1"], None, "has the label -1, which often stands for samples without a label"),
        (
            ["red", "blu"],
            ["red", "blue"],
            "the label 'blu', none of the 2 classes; did you mean 'blue",
        ),
        (["red", "1"], None, r"numbers \(1\) and names \(red\) side by side"),
        (["red", "1"], ["red", "blue"], "001 has the label '1', none of the 2 classes"),
        (["4", "4"], None, "has only the class 4; expected 2 or more"),
        (["0", "1"], ["a", "a"], "needs classes of 2 or more different names"),
    ],
)
def test_labels_that_mean_no_class(tmp_path, labels, classes, message):
    with pytest.raises(DataError, match=message):
        source(labelled(tmp_path, labels), classes=classes)


# The cache


def test_an_index_is_made_once_and_again_when_the_shard_changes(tmp_path, monkeypatch):
    paths = write_shards(tmp_path)
    made = []
    real = shard_cache.index_shard
    monkeypatch.setattr(
        shard_cache, "index_shard", lambda *args: (made.append(args[1]), real(*args))[1]
    )
    first = contents(source(f"{tmp_path}/*.tar"))
    assert len(made) == 3
    assert contents(source(f"{tmp_path}/*.tar")) == first
    assert len(made) == 3
    write_tar(paths[1], samples(50, 54))
    assert len(source(f"{tmp_path}/*.tar")) == 22
    assert made[3:] == [str(paths[1])]
    source(f"{tmp_path}/*.tar", ("jpg",))  # other keys are another index
    assert len(made) == 7


def test_a_damaged_index_is_not_believed(tmp_path):
    write_shards(tmp_path)
    first = contents(source(f"{tmp_path}/*.tar"))
    cache = shard_cache.cache_folder()
    files = sorted(cache.rglob("*.index"))
    assert len(files) == 3
    for at, path in enumerate(files):
        content = path.read_bytes()
        changed = bytearray(content)
        changed[len(content) // 2] ^= 1
        path.write_bytes([bytes(changed), content[:100], b""][at])
    assert contents(source(f"{tmp_path}/*.tar")) == first


def test_no_cache_is_no_error(tmp_path, monkeypatch):
    write_shards(tmp_path)
    (tmp_path / "file").write_text("")
    for value in ("off", str(tmp_path / "file" / "cache")):
        monkeypatch.setenv("CVATTN_CACHE", value)
        assert len(source(f"{tmp_path}/*.tar")) == 23


def test_a_shard_that_changes_in_use_is_an_error(tmp_path):
    (path,) = write_shards(tmp_path, (5,))
    ours = source(str(path))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=rf"{path.name} has changed while it was in use"):
        ours.file(4)
    path.unlink()
    with pytest.raises(DataError, match=rf"{path.name} cannot be read: .*No such file"):
        ours.file(0)


def test_identity_is_the_data_and_with_times_the_copy(tmp_path):
    (path,) = write_shards(tmp_path / "a", (5,))
    (tmp_path / "b").mkdir()
    other = shutil.copyfile(path, tmp_path / "b" / path.name)
    os.utime(other, ns=(1, 10**15))
    one, two = source(str(path)), source(str(other))
    assert one.identity(times=False) == two.identity(times=False)
    assert one.identity(times=True) != two.identity(times=True)
    write_tar(path, samples(1, 6))
    assert source(str(path)).identity(times=False) != two.identity(times=False)


def test_all_that_is_kept_of_shards_is_one_row_and_can_be_removed(bucket):
    source([str(p) for p in bucket[1]])
    copies_of(shards_of("memory://bucket/train-*.tar", "data.train"))
    (row,) = kept_files()
    assert row.source == "3 copies and 3 indices of shards"
    assert row.size > sum(p.stat().st_size for p in bucket[1])
    remove(row)
    assert kept_files() == []
    assert not list(shard_cache.cache_folder().rglob("*.shard"))


# Servers


@pytest.fixture
def bucket(tmp_path):
    """Three shards in fsspec's memory, and their paths on disk."""
    import fsspec

    system = fsspec.filesystem("memory")
    paths = write_shards(tmp_path / "disk")
    for path in paths:
        system.pipe(f"/bucket/{path.name}", path.read_bytes())
    yield system, paths
    system.rm("/bucket", recursive=True)


@pytest.mark.parametrize("pattern", ["train-{000000..000002}.tar", "train-*.tar"])
def test_shards_in_a_bucket_are_those_on_disk(bucket, pattern):
    _, paths = bucket
    there = source(f"memory://bucket/{pattern}")
    here = source([str(p) for p in paths])
    assert contents(there) == contents(here)
    assert there.identity(times=False) == here.identity(times=False)
    copied = copies_of(shards_of(f"memory://bucket/{pattern}", "data.train"))
    assert [Path(s.address).read_bytes() for s in copied] == [p.read_bytes() for p in paths]


def test_copies_are_made_once_and_their_size_is_told(bucket, capfd, monkeypatch):
    system, paths = bucket
    shards = shards_of("memory://bucket/train-*.tar", "data.train")
    copied = copies_of(shards)
    size = sum(p.stat().st_size for p in paths)
    assert f"copying 3 shards, {size / 2**20:.1f} MiB, into" in capfd.readouterr().err
    monkeypatch.setattr(system.__class__, "_open", None)  # nothing is read any more
    assert copies_of(shards) == copied
    assert "copying" not in capfd.readouterr().err


def test_a_changed_shard_is_copied_again(bucket):
    system, paths = bucket
    copies_of(shards_of("memory://bucket/train-*.tar", "data.train"))
    write_tar(paths[1], samples(90, 95))
    system.pipe(f"/bucket/{paths[1].name}", paths[1].read_bytes())
    copied = copies_of(shards_of("memory://bucket/train-*.tar", "data.train"))
    assert Path(copied[1].address).read_bytes() == paths[1].read_bytes()


def test_a_copy_that_ends_too_soon_is_not_kept(bucket, monkeypatch):
    shards = shards_of("memory://bucket/train-*.tar", "data.train")
    shards[1] = dataclasses.replace(shards[1], size=shards[1].size + 7)
    with pytest.raises(DataError, match=r"train-000001\.tar ended after \d+ of \d+ bytes"):
        copies_of(shards)
    assert not list(shard_cache.cache_folder().rglob("train-000001*"))
    assert list(shard_cache.cache_folder().rglob("train-000000*.shard"))


def test_copies_need_room_and_a_folder(bucket, monkeypatch):
    shards = shards_of("memory://bucket/train-*.tar", "data.train")
    monkeypatch.setattr(
        shard_cache.shutil, "disk_usage", lambda folder: type("", (), {"free": 1000})
    )
    with pytest.raises(DataError, match=r"cannot copy 3 shards, .*: 0\.0 MiB are free there"):
        copies_of(shards)
    monkeypatch.setenv("CVATTN_CACHE", "off")
    with pytest.raises(DataError, match="CVATTN_CACHE says that there is none"):
        copies_of(shards)


@pytest.fixture
def web(server, tmp_path):
    """Three shards on a server of this machine, and their paths on disk."""
    pytest.importorskip("aiohttp", reason="pip install -e '.[shards]'")
    import fsspec

    paths = write_shards(tmp_path / "disk")
    for path in paths:
        server.files[f"/{path.name}"] = path.read_bytes()
    yield server, paths
    fsspec.filesystem("http").clear_instance_cache()


def test_shards_behind_http_are_those_on_disk(web):
    server, paths = web
    there = source(f"{server.url}/train-{{000000..000002}}.tar")
    here = source([str(p) for p in paths])
    assert contents(there) == contents(here)
    server.log.clear()
    there.file(3)
    ((path, asked),) = server.log
    assert path == "/train-000000.tar"
    assert asked.startswith("bytes=")  # the picture alone is fetched


def test_a_shard_behind_http_that_changed_is_indexed_anew(web):
    server, paths = web
    address = f"{server.url}/train-000000.tar"
    source(address)
    other = write_tar(paths[0], samples(70, 77))  # of the same size
    assert other.stat().st_size == len(server.files["/train-000000.tar"])
    server.files["/train-000000.tar"] = other.read_bytes()
    assert source(address).key(0) == "000070"


def test_a_server_without_ranges_needs_copies(web):
    server, paths = web
    server.ranges = False
    shards = shards_of(f"{server.url}/train-000000.tar", "data.train")
    with pytest.raises(DataError, match=r"sends no parts of files; data\.copy_shards=true"):
        shards[0].read(512, 100)
    (copied,) = copies_of(shards)
    assert Path(copied.address).read_bytes() == paths[0].read_bytes()


def test_servers_that_do_not_answer_and_files_that_are_not_there(web):
    server, _ = web
    with pytest.raises(DataError, match=r"1 of 2 shards are missing: .*/train-000009\.tar"):
        shards_of([f"{server.url}/train-00000{at}.tar" for at in (0, 9)], "data.train")
    with pytest.raises(DataError, match=r"127\.0\.0\.1:9/a\.tar cannot be read: .*onnect"):
        shards_of("http://127.0.0.1:9/a.tar", "data.train")


def test_local_shards_are_not_copied(tmp_path):
    write_shards(tmp_path)
    shards = shards_of(f"{tmp_path}/*.tar", "data.train")
    assert copies_of(shards) == shards
    assert not list(shard_cache.cache_folder().rglob("*.shard"))


def test_pictures_are_decoded_by_our_decoder(tmp_path):
    write_shards(tmp_path, (3,))
    ours = source(f"{tmp_path}/*.tar")
    from PIL import Image

    for i, (_, data, _) in enumerate(contents(ours)):
        (tmp_path / "x.jpg").write_bytes(data)
        direct = np.asarray(Image.open(tmp_path / "x.jpg"))
        assert np.array_equal(np.asarray(read_picture(ours.file(i), 3)), direct)


def test_every_pair_of_places_is_another_picture(tmp_path):
    write_shards(tmp_path)
    pictures = [data for _, data, _ in contents(source(f"{tmp_path}/*.tar"))]
    assert all(a != b for a, b in itertools.combinations(pictures, 2))
