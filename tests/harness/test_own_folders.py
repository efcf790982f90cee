"""Experiments outside the checkout, arguments that no file lists, folders that hold a run."""

import pytest
from runs import CONF, TINY, train

from cvattn.harness import ConfigError, check_command_line


@pytest.fixture
def own(tmp_path):
    folder = tmp_path / "my experiments"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: vit\nmodel:\n  embed_dim: 24\n"
        "seed: 7\n"
    )
    (folder / "data").mkdir()
    (folder / "data" / "few_digits.yaml").write_text("defaults:\n  - digits\nshift: 1.0\n")
    return folder


WAYS = [
    lambda folder: ["--config-dir", str(folder)],
    lambda folder: [f"--config-dir={folder}"],
    lambda folder: ["-cd", str(folder)],
    lambda folder: [f"hydra.searchpath=['file://{folder}']"],
]


@pytest.mark.sweep(2)
@pytest.mark.parametrize("way", WAYS)
def test_own_choices_compose_and_are_checked_like_ours(own, way):
    there = way(own)
    arguments = ["experiment=mine", "data=few_digits", "model.num_heads=3"]
    checked = check_command_line([*there, *arguments], CONF)
    assert sorted(checked) == sorted([*there, *arguments])
    for wrong, message in [
        ("experiment=mien", r"experiment=mien: no such choice; did you mean mine\?"),
        ("data=few_digit", r"did you mean few_digits"),
        ("model.embd_dim=3", r"unknown key 'model\.embd_dim'; did you mean model\.embed_dim"),
        ("model.widths=[1,2]", r"unknown key 'model\.widths'"),
        ("data=mine", r"there is experiment=mine"),
    ]:
        with pytest.raises(ConfigError, match=message):
            check_command_line([*there, "experiment=mine", wrong], CONF)


def test_flags_may_stand_between_values(own):
    checked = check_command_line(["seed=1", "-cd", str(own), "experiment=mine"], CONF)
    assert checked == ["seed=1", "experiment=mine", "-cd", str(own)]


def test_without_the_folder_its_choices_do_not_exist():
    with pytest.raises(ConfigError, match=r"experiment=mine: no such choice"):
        check_command_line(["experiment=mine"], CONF)
    with pytest.raises(ConfigError, match=r"--config-dir nowhere: there is no such folder"):
        check_command_line(["--config-dir", "nowhere", "experiment=mine"], CONF)
    with pytest.raises(ConfigError, match=r"own choices for its groups come with --config-dir"):
        check_command_line(["--config-name", "mine"], CONF)


@pytest.mark.slow
@pytest.mark.parametrize("way", [WAYS[0], WAYS[3]])
def test_a_real_run_with_own_choices(own, tmp_path, way):
    train(
        *way(own),
        *("experiment=mine", "data=few_digits", "model.num_heads=3", "model.num_layers=1"),
        *("trainer.fast_dev_run=true", "trainer.accelerator=cpu", "hydra.run.dir=run"),
        cwd=tmp_path,
    )
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "embed_dim: 24" in config
    assert "shift: 1.0" in config
    assert "seed: 7" in config


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    "text",
    [
        "trainer.max_time=00:01:00:00",
        "trainer.profiler=simple",
        "trainer.val_check_interval=0.5",
        "trainer.gradient_clip_algorithm=norm",
        "callbacks.best.save_weights_only=true",
        "callbacks.best.every_n_epochs=2",
    ],
)
def test_valid_arguments_need_no_plus(composed, text):
    (checked,) = check_command_line([text], CONF)
    assert checked == f"++{text}"
    assert check_command_line([checked], CONF) == [checked]  # as a further process gets it
    composed([checked])


def test_arguments_of_any_target_and_of_none():
    assert check_command_line(["recipe=timm", "recipe.optimizer.amsgrad=true"], CONF) == [
        "recipe=timm",
        "++recipe.optimizer.amsgrad=true",
    ]
    for wrong, message in [
        ("trainer.max_tme=1", r"did you mean .*trainer\.max_time"),
        ("trainer.callbacks=[]", r"unknown key 'trainer\.callbacks'"),
        ("recipe.clipping=1", r"unknown key 'recipe\.clipping'"),
        ("task.optimizer.amsgrad=true", r"unknown key"),
    ]:
        with pytest.raises(ConfigError, match=message):
            check_command_line([wrong], CONF)


def test_a_folder_that_holds_a_run_is_not_written_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = tmp_path / "old"
    (old / "checkpoints").mkdir(parents=True)
    for key in ("hydra.run.dir", "run_dir"):
        check_command_line([*TINY, f"{key}=old"], CONF)  # nothing is lost in there
    (old / "checkpoints" / "last.ckpt").write_bytes(b"")
    for key in ("hydra.run.dir", "run_dir"):
        with pytest.raises(
            ConfigError, match=r"old holds a run already.* ckpt_path=old/checkpoints/last\.ckpt"
        ):
            check_command_line([*TINY, f"{key}=old"], CONF)
    (old / "checkpoints" / "last.ckpt").unlink()
    (old / "summary.json").write_text("{}")
    with pytest.raises(ConfigError, match="name another folder"):
        check_command_line([*TINY, "hydra.run.dir=old"], CONF)
    with pytest.raises(ConfigError, match="old holds a run already"):
        check_command_line([*TINY, "seed=1,2", "-m", f"hydra.sweep.dir={tmp_path}"], CONF)


def test_one_folder_by_whichever_name():
    """Hydra would make another, empty one for a run that only run_dir= names."""
    assert check_command_line(["run_dir=here"], CONF) == ["run_dir=here", "hydra.run.dir=here"]
    with pytest.raises(ConfigError, match=r"all jobs would write into one folder"):
        check_command_line(["run_dir=here", "seed=1,2", "-m"], CONF)


@pytest.mark.slow
def test_cfg_job_shows_the_folder(tmp_path):
    shown = train("--cfg", "job", "--resolve", "data=digits", "hydra.run.dir=here", cwd=tmp_path)
    assert f"run_dir: {tmp_path}/here\n" in shown
    assert f"path: {tmp_path}/here/metrics.csv\n" in shown
    assert not (tmp_path / "here").exists()
