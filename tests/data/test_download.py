"""Downloads from a server of our own: resuming, damage, promises, and no network."""

import json
import threading
import time

import pytest

from cvattn.data import DataError, download
from cvattn.data import remote as servers
from cvattn.data.remote import RemoteFile, Source

DATA = bytes(range(256)) * 1009


@pytest.fixture
def remote(server):
    server.files["/thing.bin"] = DATA
    return RemoteFile(f"{server.url}/thing.bin", "below/thing.bin", len(DATA))


def test_fetch_writes_the_file_its_marker_and_nothing_else(remote, tmp_path):
    path = download.fetch(remote, tmp_path)
    assert path.read_bytes() == DATA
    names = {p.name for p in path.parent.iterdir()}
    assert names == {"thing.bin", "thing.bin.downloaded.json"}
    assert download.is_ours(path)
    assert download.is_as_downloaded(path)
    path.write_bytes(DATA[:-1])
    assert not download.is_as_downloaded(path)


def test_a_cut_connection_goes_on_where_it_stopped(server, remote, tmp_path):
    server.cut = 100_000
    assert download.fetch(remote, tmp_path, pause=0).read_bytes() == DATA
    assert server.log == [("/thing.bin", None), ("/thing.bin", "bytes=100000-")]


def test_an_earlier_part_is_continued(server, remote, tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "thing.bin.part").write_bytes(DATA[:77_777])
    assert download.fetch(remote, tmp_path).read_bytes() == DATA
    assert server.log == [("/thing.bin", "bytes=77777-")]


def test_a_part_of_another_version_is_not_joined(server, remote, tmp_path):
    server.files["/thing.bin"] = b"old" * 9000
    server.cut = 5000
    with pytest.raises(DataError, match=r"run the same command again"):
        download.fetch(remote, tmp_path, attempts=0)
    assert not download._fetch_part(remote.url, _part(tmp_path), 5.0)
    server.files["/thing.bin"] = DATA
    assert download.fetch(remote, tmp_path).read_bytes() == DATA


def _part(root):
    (root / "below").mkdir(exist_ok=True)
    return root / "below" / "thing.bin.part"


def test_a_server_without_ranges_starts_over(server, remote, tmp_path):
    server.ranges = False
    _part(tmp_path).write_bytes(DATA[:1000])
    assert download.fetch(remote, tmp_path).read_bytes() == DATA


def test_a_complete_part_is_taken_and_a_longer_one_is_not(server, remote, tmp_path):
    _part(tmp_path).write_bytes(DATA)
    assert download.fetch(remote, tmp_path).read_bytes() == DATA
    _part(tmp_path).write_bytes(DATA + b"more")
    assert download.fetch(remote, tmp_path, pause=0).read_bytes() == DATA


def test_a_missing_file_is_named_at_once(server, tmp_path):
    gone = RemoteFile(f"{server.url}/gone", "gone", 1)
    with pytest.raises(DataError, match=r"/gone: the server answered 404"):
        download.fetch(gone, tmp_path)
    assert len(server.log) == 1


def test_a_dead_server_is_given_up(tmp_path):
    dead = RemoteFile("http://127.0.0.1:9/x", "x", 1)
    with pytest.raises(DataError, match=r"could not download .*127\.0\.0\.1:9"):
        download.fetch(dead, tmp_path, attempts=2, pause=0)


def test_set_aside_keeps_every_damaged_file(tmp_path):
    names = []
    for _ in range(2):
        path = tmp_path / "a.bin"
        path.write_bytes(b"x")
        (tmp_path / "a.bin.downloaded.json").write_text(json.dumps({"sha256": "no"}))
        names.append(download.set_aside(path).name)
        assert not download.is_ours(path)
    assert names == ["a.bin.damaged", "a.bin.damaged-2"]


def test_the_probe_finds_the_fast_source_and_says_what_failed(server):
    server.files["/fast"] = DATA
    fast = Source("fast", (RemoteFile(f"{server.url}/fast", "f", len(DATA)),))
    dead = Source("dead", (RemoteFile("http://127.0.0.1:9/x", "x", 10),))
    gone = Source("gone", (RemoteFile(f"{server.url}/gone", "g", 10),))
    promises = {p.source.name: p for p in servers.probe([gone, dead, fast], seconds=1)}
    assert promises["fast"].seconds < 60
    assert promises["dead"].seconds is None
    assert "refused" in promises["dead"].problem.lower()
    assert promises["gone"].problem in ("the server answered 404 Not Found", LATE)


LATE = "no answer within 12 s"


def test_the_probe_measures_a_slow_server_in_its_time(server):
    server.files["/slow"], server.delay = DATA, 0.02
    slow = Source("slow", (RemoteFile(f"{server.url}/slow", "s", 170_498_071),))
    start = time.monotonic()
    (promise,) = servers.probe([slow], seconds=0.8)
    assert time.monotonic() - start < 2
    # 1 KiB each 20 ms, or slower on a busy machine: 170 MB take about an hour.
    assert 2000 < promise.seconds < 20_000


def test_the_probe_ends_although_a_look_up_hangs(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(servers, "_seconds_for", lambda *args: release.wait(30))
    start = time.monotonic()
    (promise,) = servers.probe([Source("hung", (RemoteFile("http://x/", "x", 1),))], deadline=0.3)
    assert time.monotonic() - start < 2
    assert promise.seconds is None
    assert "no answer" in promise.problem
    release.set()


def test_the_lock_lets_one_in_at_a_time(tmp_path, capsys):
    inside, most = [], []

    def work():
        with download.lock(tmp_path):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]


def test_a_root_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DataError, match=r"cannot write into data\.root"),
        download.lock(tmp_path / "file" / "root"),
    ):
        pass
