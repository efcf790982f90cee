"""The choice between CIFAR-10 and digits, and the reason that people are shown."""

import time

import pytest
from copies import change, lay_out

from cvattn.data import Choice, choose, remote


@pytest.mark.parametrize("form", ["folder", "archive", "parquet:plain_text"])
def test_cifar10_where_it_is(tiny, tmp_path, form):
    lay_out(tiny, tmp_path, form)
    choice = choose(tmp_path, offline=True)
    assert choice.name == "cifar10"
    assert str(tmp_path) in choice.reason


def test_offline_is_digits_and_nothing_is_asked(serve_tiny, server, tmp_path, monkeypatch):
    assert choose(str(tmp_path), offline=True).name == "digits"
    monkeypatch.setenv("CVATTN_OFFLINE", "1")
    choice = choose(tmp_path)
    assert choice.name == "digits"
    assert "forbidden" in choice.reason
    assert server.log == []
    assert list(tmp_path.iterdir()) == []


def test_a_fast_download_is_chosen_and_not_begun(serve_tiny, tmp_path):
    choice = choose(tmp_path)
    assert choice.name == "cifar10"
    assert "s to download" in choice.reason
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("seconds", "name"), [(179.0, "cifar10"), (181.0, "digits")])
def test_three_minutes_decide(serve_tiny, tmp_path, monkeypatch, seconds, name):
    promises = [remote.Promise(s, seconds + i) for i, s in enumerate(serve_tiny.values())]
    monkeypatch.setattr(remote, "probe", lambda sources: promises)
    choice = choose(tmp_path)
    assert choice.name == name
    assert "official" in choice.reason  # the faster of the two


def test_no_network_is_digits(tmp_path, monkeypatch):
    dead = remote.Source("dead", (remote.RemoteFile("http://127.0.0.1:9/c", "c", 10),))
    change(monkeypatch, sources=(dead,))
    start = time.monotonic()
    choice = choose(tmp_path)
    assert time.monotonic() - start < 15
    assert choice.name == "digits"
    assert "no server answered" in choice.reason


def test_half_a_copy_is_digits_with_the_missing_file_named(tiny, tmp_path):
    lay_out(tiny, tmp_path, "parquet")[0].unlink()
    choice = choose(tmp_path)
    assert isinstance(choice, Choice)
    assert choice.name == "digits"
    assert "train-00000-of-00001.parquet is missing" in choice.reason
