"""CVATTN_OFFLINE is understood by one function, and what it does not understand is refused."""

import pytest

from cvattn.cli import main
from cvattn.data import choose
from cvattn.data.images.cifar import CIFAR10Data
from cvattn.harness import ConfigError, plain_errors
from cvattn.harness.config.decisions import decide_data
from cvattn.models import TimmCNN
from cvattn.system import is_offline

YES, NO = ["1", "true", "True", "yes", "on", " ON "], ["", "0", "false", "no", "off"]


@pytest.mark.parametrize("value", YES + NO)
def test_values(monkeypatch, value):
    monkeypatch.setenv("CVATTN_OFFLINE", value)
    assert is_offline() is (value in YES)


def test_unset_is_allowed(monkeypatch):
    monkeypatch.delenv("CVATTN_OFFLINE", raising=False)
    assert is_offline() is False


@pytest.mark.parametrize("value", ["true", "YES"])
def test_every_room_keeps_to_it(monkeypatch, tmp_path, value):
    monkeypatch.setenv("CVATTN_OFFLINE", value)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    assert choose(tmp_path).name == "digits"
    assert decide_data(str(tmp_path)).choice == "digits"
    with pytest.raises(ValueError, match="CVATTN_OFFLINE forbids downloads"):
        CIFAR10Data(root=tmp_path).prepare_data()
    with pytest.raises(ValueError, match="CVATTN_OFFLINE"):
        TimmCNN("test_resnet", 3, pretrained=True).load_pretrained()


def test_every_room_refuses_what_is_not_understood(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CVATTN_OFFLINE", "banana")
    for ask in (
        lambda: choose(tmp_path),
        lambda: decide_data(str(tmp_path / "other")),
        CIFAR10Data(root=tmp_path).prepare_data,
        TimmCNN("test_resnet", 3, pretrained=True).load_pretrained,
    ):
        with pytest.raises(ValueError, match="CVATTN_OFFLINE='banana' is not understood"):
            ask()
    with pytest.raises(SystemExit) as ended, plain_errors():
        raise ConfigError("not reached")
    assert ended.value.code == 2
    assert "CVATTN_OFFLINE='banana'" in capsys.readouterr().err
    assert main(["predict", "none.ckpt", "a.png"]) == 2
    assert "CVATTN_OFFLINE='banana'" in capsys.readouterr().err
    assert main(["--help"]) == 0
