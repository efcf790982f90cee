"""Runs whose samples are sequences: the harness asks task and data, and knows no model by name."""

import json

import pytest
import torch
from line_images import write_lines
from omegaconf import OmegaConf
from runs import CONF

import cvattn
from cvattn.cost import count_macs
from cvattn.harness import ConfigError, check_command_line
from cvattn.harness.config.resolve import resolve
from cvattn.harness.reporting.csv_log import read_metrics

SMALL = [
    *("trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_epochs=1"),
    *("model.embed_dim=12", "model.num_heads=3", "model.ffn_dim=17", "recipe.batch_size=20"),
    *("data.train_size=60", "data.val_size=11", "data.test_size=13"),
]
TRANSFORMER = ["model=transformer", *SMALL, "data.max_length=4"]
READER = ["model=reader", *SMALL, "model.stem=[4,6]", "data.longer_size=3"]


def summary_of(tmp_path) -> dict:
    return json.loads((tmp_path / "run" / "summary.json").read_text())


@pytest.mark.parametrize(
    ("model", "task", "data"),
    [
        ("transformer", "cvattn.tasks.SequenceTask", "cvattn.data.StringsData"),
        ("reader", "cvattn.tasks.SequenceTask", "cvattn.data.DigitLinesData"),
    ],
)
def test_a_model_brings_its_task_and_data(composed, model, task, data):
    cfg = composed([f"model={model}"])
    resolve(cfg, [])
    assert cfg.task._target_ == task
    assert cfg.data._target_ == data
    assert cfg.model.target_vocab == len(cfg.task.alphabet) + 3
    assert check_command_line([f"model={model}"], CONF) == [f"model={model}"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model=reader", "data=digits"],
            r"model\.target_vocab is for the data to say, and data=d",
        ),
        (["model=vit", "data=reverse"], "a text for each string, and ClassificationTask learns"),
        (
            ["model=vit", "task=sequence", "data=reverse"],
            r"model\.num_classes.*made of strings, which this model",
        ),
        (["model=transformer", "data=digit_lines"], r"model\.source_vocab.*it is made of lines"),
        (["model=transformer", "model.target_vocab=9"], "reverse has 29 tokens in its answers"),
        (
            ["model=reader", "model.embed_dim=30", "model.num_heads=3"],
            "dim=30 must be divisible by 4",
        ),
        (["model=reader", "model.stem=[8,8,8,8,8]"], "height=32 is not divisible by 128"),
        (["model=transformer", "data.operation=srot"], "did you mean 'sort'"),
        (
            ["model=reader", "task=classification"],
            r"task\.\w+: .*recipe\.mixup.*is the recipe one for this task",
        ),
    ],
)
def test_what_does_not_belong_together(run, overrides, message):
    with pytest.raises(ConfigError, match=message):
        run(overrides)


def test_strings_from_end_to_end(run, tmp_path, capsys):
    best = run(TRANSFORMER)
    summary = summary_of(tmp_path)
    assert summary["data"]["name"] == "reverse"
    assert summary["criterion"]["best"] == best
    assert 0 <= summary["test"]["accuracy"] <= 1
    assert {"loss", "accuracy", "token_accuracy", "cer"} == set(summary["test"])
    assert summary["strings"] == 60
    assert "test_views" not in summary
    network = cvattn.load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    cost = 0
    for size, count in summary["strings_by_size"].items():
        source, target = map(int, size.split("x"))
        ids = [torch.zeros(1, n, dtype=torch.int64) for n in (source, target)]
        cost += count * count_macs(network, *ids)
    assert summary["pflop"] == pytest.approx(6 * cost / 1e15)
    (row,) = read_metrics(tmp_path / "run" / "metrics.csv").values()
    assert {"train/loss", "val/loss", "val/accuracy", "val/cer"} <= row.keys()
    for name in ("curves.png", "attention.png"):
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "strings/s" in printed
    assert "test exact" in printed
    assert "cvattn evaluate" not in printed  # which is for images with classes


@pytest.mark.slow
def test_lines_from_end_to_end(run, tmp_path, capsys):
    run(READER)
    summary = summary_of(tmp_path)
    assert summary["lines"] == 60
    assert set(summary["further_tests"]) == {f"{n} digits" for n in (9, 10, 11, 12)}
    assert all(0 <= part["accuracy"] <= 1 for part in summary["further_tests"].values())
    assert (tmp_path / "run" / "attention.png").read_bytes().startswith(b"\x89PNG")
    network = cvattn.load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert type(network).__name__ == "Reader"
    assert network.meta["alphabet"] == list("0123456789")
    assert network.meta["height"] == 32
    assert len(network.meta["mean"]) == 1
    printed = capsys.readouterr().out
    assert "9 digits: exact" in printed
    assert "predict" in printed


@pytest.mark.slow
def test_a_users_own_lines_from_end_to_end(run, tmp_path, capsys):
    """From a folder to what the trained network reads in one of its files."""
    from cvattn.cli import main

    root = write_lines(tmp_path / "mine")
    small = [option for option in SMALL if not option.startswith("data.")]
    small += ["recipe.batch_size=5", "model.stem=[4,6]", "data.height=16"]
    run(["model=reader", "data=line_folder", f"data.root={root}", *small])
    summary = summary_of(tmp_path)
    assert summary["data"]["name"] == "line_folder"
    assert summary["lines"] == 20
    assert "further_tests" not in summary
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert "".join(cvattn.load(last).meta["alphabet"]) == "aé界"
    capsys.readouterr()
    assert main(["predict", str(last), str(root / "test" / "t1.png")]) == 0
    assert capsys.readouterr().out.startswith(str(root / "test" / "t1.png"))
    (root / "test" / "transcripts.txt").write_text("t1.png\tx\n")
    with pytest.raises(ConfigError, match=r"data: .*t1\.png: character 'x'"):
        run(["model=reader", "data=line_folder", f"data.root={root}", *small])


@pytest.mark.slow
def test_continuing_equals_never_stopping(run, composed, tmp_path):
    from cvattn.harness import fit

    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    whole = [o for o in TRANSFORMER if "max_epochs" not in o] + ["model.dropout=0.2"]
    schedule = ["recipe.warmup=0.0", "recipe.final=1.0"]  # the same for any number of epochs
    run([*whole, *schedule, "trainer.max_epochs=2"])
    want = torch.load(last, weights_only=True)["state_dict"]
    (tmp_path / "run").rename(tmp_path / "whole")
    run([*whole, *schedule, "trainer.max_epochs=1"])
    fit(composed([f"ckpt_path={last}", "trainer.max_epochs=2"]))
    found = torch.load(last, weights_only=True)["state_dict"]
    assert all(torch.equal(found[name], value) for name, value in want.items())
    assert summary_of(tmp_path)["strings"] == 120


@pytest.mark.parametrize("name", ["reverse", "digit_lines"])
def test_every_tunable_of_the_data_is_listed(composed, name):
    import inspect

    from cvattn import data as rooms

    model = {"reverse": "transformer", "digit_lines": "reader"}[name]
    cfg = composed([f"model={model}", f"data={name}"])
    values = OmegaConf.to_container(cfg.data, resolve=True)
    signature = inspect.signature(getattr(rooms, values.pop("_target_").rpartition(".")[2]))
    assert set(values) == set(signature.parameters)
    for key, value in values.items():
        default = signature.parameters[key].default
        if key not in ("batch_size", "seed"):
            assert (tuple(value) if isinstance(value, list) else value) == default, key
