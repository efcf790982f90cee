"""``model=own model._target_=my_net.Net``: a user's own network, from a folder of his."""

import json
import sys

import pytest
import torch
from own_code import write_own_code
from runs import CONF, train

import cvattn
from cvattn.checkpoint import CheckpointError
from cvattn.cli import main
from cvattn.data import DigitsData
from cvattn.harness import ConfigError, check_command_line, fit
from cvattn.harness.config.resolve import resolve

SHORT = [
    *("data=digits", "trainer.precision=32-true", "trainer.accelerator=cpu"),
    *("trainer.limit_train_batches=3", "trainer.max_epochs=1"),
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The user's folder, which is the working directory; his modules are new to Python."""
    folder = write_own_code(tmp_path / "mine")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    yield folder
    for name in ("my_net", "my_parts", "broken", "unfinished"):
        sys.modules.pop(name, None)


WRONG = [
    ([], r"model\._target_: name the class, such as model\._target_=my_net\.Net"),
    (["model._target_=my_net.Nett"], r"my_net has no 'Nett'; did you mean Net\?"),
    (["model._target_=my_nett.Net"], r"there is no module 'my_nett', neither installed nor in /"),
    (["model._target_=my_net.deep.Net"], r"my_net has no 'deep'"),
    (["model._target_=broken.Net"], r"broken cannot be imported: ModuleNotFoundError: .*no_such"),
    (["model._target_=unfinished.Net"], r"unfinished cannot be imported: SyntaxError"),
    (["model._target_=my_net.silent"], r"a function that returns one and says so"),
    (["model._target_=my_net.text"], r"expected a torch\.nn.*or a function"),
    (["model._target_=os.system"], r"expected a torch\.nn.*or a function"),
    (["model._target_=my_net.Net", "model.widht=3"], r"model\.widht'; did you mean model\.width"),
    (["model._target_=my_net.Net", "model.width=a"], r"model\.width='a': expected int"),
    (["model._target_=my_net.Net", "model.num_classes=7"], r"digits has 10 classes; leave"),
    (["model._target_=my_net.Pair"], r"answers \(2, 3, 32, 32\) with tuple, and .* \(2, 10\)"),
    (["model._target_=my_net.Grey"], r"does not take what the data has, \(2, 3, 32, 32\): Runtime"),
    (["model._target_=my_net.Stubborn"], r"model: this class is never content"),
    (
        ["model._target_=torchvision.models.resnet18"],
        r"\(2, 1000\), and ClassificationTask needs \(2, 10\).*it was built with \(\)",
    ),
]


@pytest.mark.sweep(5)
@pytest.mark.parametrize(("given", "message"), WRONG)
def test_what_is_wrong_is_said_before_data_is_read(here, composed, monkeypatch, given, message):
    monkeypatch.setattr(DigitsData, "setup", lambda *_: pytest.fail("data was read"))

    def start():
        return fit(composed(check_command_line(["model=own", *SHORT, *given], CONF)))

    with pytest.raises(ConfigError, match=message):
        start()


@pytest.mark.slow
def test_what_the_constructor_takes_of_the_data_is_filled_in(here, composed):
    def model(name, *given):
        arguments = check_command_line(
            ["model=own", f"model._target_=my_net.{name}", *SHORT, *given], CONF
        )
        cfg = composed(arguments)
        resolve(cfg, arguments)
        return {key: value for key, value in cfg.model.items() if key != "_target_"}

    assert model("Net", "model.width=7") == {"num_classes": 10, "in_channels": 3, "width": 7}
    assert model("Sided") == {"num_classes": 10, "image_size": 32}
    assert model("Outer.Inner") == {"num_classes": 10, "in_channels": 3}
    assert model("inserted", "model.depth=2") == {"num_classes": 10, "depth": 2}
    own = "model._target_=torchvision.models.resnet18"
    checked = check_command_line(["model=own", own, "model.num_classes=10"], CONF)
    assert checked == ["model=own", own, "++model.num_classes=10"]


def test_a_class_of_ours_is_not_mixed_with_ones_own(composed, here):
    with pytest.raises(ConfigError, match=r"has no such argument.*starts from model=own"):
        fit(composed(["model=sagan", "model._target_=my_net.Net", *SHORT]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Net", "inserted"])
def test_its_checkpoint_opens_where_its_code_is_given(here, composed, name, capsys):
    given = check_command_line(["model=own", f"model._target_=my_net.{name}", *SHORT], CONF)
    cfg = composed(given)
    fit(cfg)
    last = f"{cfg.run_dir}/checkpoints/last.ckpt"
    assert f"evaluate {last} --network my_net:{name}" in capsys.readouterr().out.replace("\n", "")
    summary = json.loads((here.parent / "run" / "summary.json").read_text())
    assert summary["model"] == name

    import my_net

    again = cvattn.load(last, network=getattr(my_net, name))
    assert not again.training
    assert again.meta["classes"] == list("0123456789")
    built = getattr(my_net, name)(num_classes=10)
    assert cvattn.load(last, network=built) is built
    images, labels, _ = DigitsData().example_images(500, "test")
    with torch.no_grad():
        right = (again(images).argmax(-1) == labels).float().mean().item()
        assert torch.equal(again(images), built(images))
    assert right == pytest.approx(summary["test"]["accuracy"], abs=1e-6)

    for command in (["evaluate", last], ["explore", last, "-o", "page.html"]):
        assert main(command) == 2
        message = capsys.readouterr().err
        assert f"holds a network of one's own, my_net:{name}" in message
        assert f"--network my_net:{name}" in message
        assert main([*command, "--network", f"my_net:{name}"]) == 0, capsys.readouterr().err
        capsys.readouterr()
    for wrong, reason in [
        ("my_net:Nett", "did you mean Net?"),
        ("my net", "expected MODULE:NAME"),
        ("nowhere:Net", "there is no module 'nowhere'"),
        ("my_net:text", "network= made a str" if name == "inserted" else "unexpected keyword"),
    ]:
        assert main(["evaluate", last, "--network", wrong]) == 2
        assert reason in capsys.readouterr().err


def test_a_checkpoint_alone_imports_nothing(here, composed):
    given = ["model=own", "model._target_=my_net.Net", *SHORT]
    cfg = composed(given)
    fit(cfg)
    last = f"{cfg.run_dir}/checkpoints/last.ckpt"
    del sys.modules["my_net"]
    (here / "my_net.py").write_text("raise SystemExit('it was imported')\n")
    with pytest.raises(CheckpointError, match="a file alone does not make its code run"):
        cvattn.load(last)
    assert main(["predict", last, "x.png"]) == 2
    continued = check_command_line([f"ckpt_path={last}", "trainer.max_epochs=2"], CONF)
    with pytest.raises(ConfigError, match=r"give model\._target_= on the command line"):
        fit(composed([text for text in continued if not text.startswith("hydra")]))


@pytest.mark.slow
def test_own_task_and_own_data(here, composed, capsys):
    given = check_command_line(
        [
            *("model=own", "model._target_=my_net.Net", *SHORT, "trainer.limit_train_batches=1.0"),
            *("task._target_=my_parts.Focal", "task.focus=1.5"),
            *("data._target_=my_parts.Half", "data.every=3", "~data.shift", "~data.rotation"),
            *("~data.scale", "~data.eval_batch_size"),
        ],
        CONF,
    )
    cfg = composed(given)
    fit(cfg)
    assert "419 / 180 / 360 images" in capsys.readouterr().out
    from my_parts import Focal

    steps = -(-419 // 32) - 1  # the tail fills no batch
    assert Focal.seen == [1.5] * steps * cfg.trainer.max_epochs


@pytest.mark.slow
def test_as_a_program_from_the_users_folder_and_continued(here):
    """Started elsewhere than the checkout, stopped between epochs, and gone on with."""
    arguments = ["model=own", "model._target_=my_net.Net", *SHORT, "hydra.run.dir=run"]
    train(*arguments, cwd=here)
    one = [*arguments, "trainer.max_epochs=2"]
    train(*[text.replace("=run", "=whole") for text in one], cwd=here)
    command = "ckpt_path=run/checkpoints/last.ckpt"
    output = train(command, "trainer.max_epochs=2", cwd=here, code=2)
    assert "give model._target_= on the command line" in output
    train(command, "model._target_=my_net.Net", "trainer.max_epochs=2", cwd=here)
    output = train(*one[:-2], "hydra.run.dir=run", "resume=auto", "trainer.max_epochs=2", cwd=here)
    assert "Nothing to do" in output
