import shlex

import pytest
from runs import CONF, TINY

from cvattn import checkpoint
from cvattn.harness import ConfigError, check_command_line
from cvattn.harness.config.composition import parse
from cvattn.harness.config.paths import continue_command
from cvattn.models import SAGANClassifier

WRONG = [
    (["model=vti"], r"model=vti: no such choice; did you mean vit\?"),
    (["data=cifar"], r"did you mean cifar10"),
    (["trainer=gpu"], r"there are: auto, ddp"),
    (["recipe=resnet"], r"recipe=resnet: no such choice"),
    (
        ["recipe=vit_long"],
        r"recipe=vit_long: no such choice; there is experiment=vit_long\. Choices of .*vit",
    ),
    (["trainer=vit"], r"there is model=vit and recipe=vit\. Choices of trainer: auto, ddp"),
    (["model=*"], r"model=\*: no such choice"),
    (["model.embd_dim=3", "model=vit"], r"'model\.embd_dim'; did you mean model\.embed_dim"),
    (["trainer.max_epoch=3"], r"did you mean trainer\.max_epochs"),
    (["recipe.lr=0.1"], r"did you mean .*recipe\.optimizer\.lr"),
    (["sed=1"], r"did you mean seed\?"),
    (["modle=vit"], r"did you mean model"),
    (["model"], r"cannot read 'model'; expected key=value"),
    (
        ["data=webdataset", "data.train=/a/{00..12}.tar"],
        r"need quotes of their own: 'data\.train=\"/a/\{00\.\.12\}\.tar\"'",
    ),
    (["seed=1,2"], r"need --multirun"),
    (["trainer=ddp", "seed=1,2", "-m"], r"cannot run inside a multirun"),
    (["trainer.strategy=ddp", "model=vit,sagan", "--multirun"], r"cannot run inside a multirun"),
    (["trainer=auto,ddp", "-m"], r"cannot run inside a multirun"),
    (["trainer.strategy=auto,ddp", "-m"], r"cannot run inside a multirun"),
    (
        ["model=vit,sagan", "model.embed_dim=64", "-m"],
        r"^with model=sagan: unknown key 'model\.emb",
    ),
    (["callbacks=[default],[default,emma]", "-m"], r"callbacks=emma: .* did you mean ema\?"),
    (["seed=glob(*)", "-m"], r"seed=glob\(\*\): no such choice of a group"),
    (["ckpt_path=nowhere.ckpt"], r"no checkpoint at nowhere\.ckpt"),
    (["model=vit,vgg", "-m"], r"model=vgg: no such choice"),
    (["logger=null"], r"logger=null: expected one of csv, .* or logger=\[\] for none"),
    (["data=null"], r"data=null: expected one of .*cifar10, [^\[]*$"),
    (["model=[]"], r"model=\[\]: expected one of own, reader, sagan"),
]


@pytest.mark.sweep(9)
@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_mistakes_are_named_with_what_is_near(arguments, message):
    with pytest.raises(ConfigError, match=message):
        check_command_line(arguments, CONF)


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    "arguments",
    [
        [],
        TINY,
        ["model=vit", "recipe=sagan", "logger=tensorboard"],
        ["seed=1,2", "model=vit,sagan", "--multirun"],
        ["callbacks=[default],[default,ema]", "model=glob(*)", "--multirun"],
        ["~logger", "seed=null"],
        ["logger=[]", "callbacks=[]"],
        ["--help"],
        ["--cfg", "job"],
        ["hydra.run.dir=/tmp/elsewhere"],
    ],
)
def test_what_is_right_goes_through_unchanged(arguments, monkeypatch):
    monkeypatch.setenv("CVATTN_OFFLINE", "1")
    assert check_command_line(arguments, CONF) == arguments


def test_the_multirun_flag_may_stand_anywhere():
    arguments = ["model=vit", "-m", "seed=1,2"]
    assert check_command_line(arguments, CONF) == ["model=vit", "seed=1,2", "--multirun"]


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run folder.*file.*is not a folder"):
        check_command_line([f"hydra.run.dir={tmp_path}/file/run"], CONF)


@pytest.mark.parametrize("name", ["run", "my run", "Lauf-ü", 'a "b" \\"c"', "it's", "a=[b], c"])
def test_continuing_writes_into_the_same_folder(tmp_path, name):
    path = tmp_path / name / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    network = SAGANClassifier(5, widths=(1, 1, 1))
    meta = {"source_config": {}, "choices": {}}
    checkpoint.save(path, network, args={}, meta=meta)
    (argument,) = shlex.split(continue_command(path))[2:]
    checked = check_command_line([argument], CONF)
    assert [parse(text).value() for text in checked] == [str(path), str(path.parents[1])]


def test_keys_beside_ckpt_path_are_those_of_the_continued_run(tmp_path):
    """model.embed_dim is the ViT's alone, and the run was one: model=vit need not be said again."""
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    meta = {"source_config": {}, "choices": {"model": "vit", "data": "digits", "hydra": "x"}}
    checkpoint.save(path, SAGANClassifier(5, widths=(1, 1, 1)), args={}, meta=meta)
    arguments = [f"ckpt_path={path}", "model.embed_dim=64"]
    checked = check_command_line(arguments, CONF)
    assert checked == [*arguments, "model=vit", "data=digits", f"hydra.run.dir={path.parents[1]}"]
    with pytest.raises(
        ConfigError, match=r"unknown key 'model\.embed_dims'; did you mean model\.embed_dim"
    ):
        check_command_line([arguments[0], "model.embed_dims=64"], CONF)
    with pytest.raises(ConfigError, match=r"model\.embed_dim"):
        check_command_line([*arguments, "model=sagan"], CONF)


def test_a_network_for_use_cannot_be_trained_on(tmp_path):
    path = tmp_path / "net.ckpt"
    checkpoint.save(path, SAGANClassifier(5, widths=(1, 1, 1)), args={}, meta={})
    with pytest.raises(ConfigError, match="without the state of a training run"):
        check_command_line([f"ckpt_path={path}"], CONF)
