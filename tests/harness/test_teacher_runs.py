"""A run with a teacher: its cost is told, and a changed teacher is."""

import json

import pytest
from runs import TINY

import cvattn
from cvattn import checkpoint
from cvattn.cost import count_macs
from cvattn.harness import ConfigError


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.slow
def test_its_cost_counts_and_it_is_in_no_checkpoint(run, tmp_path, capsys):
    run(TINY)
    alone = summary(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "alone")
    run([*TINY, "task.teacher=sagan-digits", "task.teacher_temperature=2"])
    taught = summary(tmp_path / "run")
    printed = " ".join(capsys.readouterr().out.replace("│", "").split())
    teacher = cvattn.load("sagan-digits")
    images = cvattn.data.DigitsData().describe().zeros((32, 32))[0]
    macs = count_macs(teacher, images)
    assert f"learns from sagan-digits, too: {macs / 1e9:.3f} GMACs an image" in printed
    seen = sum(alone["images_by_size"].values())
    more = (taught["pflop"] - alone["pflop"]) * 1e15
    assert more == pytest.approx(2 * macs * seen, rel=1e-3)
    assert taught["parameters"] == alone["parameters"]
    names = [
        checkpoint.read(tmp_path / folder / "checkpoints" / "last.ckpt")["state_dict"].keys()
        for folder in ("run", "alone")
    ]
    assert names[0] == names[1]


@pytest.mark.slow
def test_another_teacher_under_the_same_name_is_told(run, tmp_path, capsys):
    path = tmp_path / "teacher.ckpt"
    content = checkpoint.read("sagan-digits")
    checkpoint.write(content, path)
    run([*TINY, f"task.teacher={path}"])
    last = f"ckpt_path={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"
    run([last, "trainer.max_epochs=2"])
    assert "teachers" not in capsys.readouterr().out
    content["state_dict"]["network.head.bias"] += 1
    checkpoint.write(content, path)
    run([last, "trainer.max_epochs=3"])
    assert "has had 2 teachers: the weights of the one given changed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.teacher=gone.ckpt"], "task.*teacher: no checkpoint at gone.ckpt"),
        (["task.teacher_share=2"], "teacher_share=2.*there is no teacher"),
    ],
)
def test_refused_before_training(run, overrides, message):
    with pytest.raises(ConfigError, match=message):
        run([*TINY, *overrides])
