"""What the arms of a comparison are, and what is no comparison: said before anything is trained."""

import pytest

from cvattn.cli import main
from cvattn.comparison.arms import read_arms
from cvattn.comparison.jobs import Job
from cvattn.comparison.planned import plan
from cvattn.harness import ConfigError


def test_an_experiment_s_arms_without_its_seeds():
    arms = read_arms(["experiment=flow_attention"])
    assert arms.name == "flow_attention"
    assert list(arms.overrides) == ["unet", "frozen", "none", "convolution"]
    assert arms.overrides["none"] == ("experiment=flow_attention", "model.attention=none")


def test_the_command_line_wins_over_the_experiment():
    given = ["experiment=flow_attention", "model.attention=none,unet", "trainer.max_epochs=2"]
    arms = read_arms(given)
    assert list(arms.overrides) == ["none", "unet"]
    assert arms.overrides["unet"] == (
        *("experiment=flow_attention", "trainer.max_epochs=2", "model.attention=unet"),
    )
    # Other arms, another file; the same, the same one.
    assert arms.name.startswith("flow_attention_")
    assert arms.name == read_arms(given).name
    assert arms.name != read_arms([*given[:2], "trainer.max_epochs=3"]).name
    with pytest.raises(ConfigError, match="nothing to compare"):
        read_arms(["experiment=flow_attention", "model.attention=none"])


@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    ("swept", "names"),
    [
        (["model=sagan,vit"], ["sagan", "vit"]),
        (["model.attention=none,common"], ["none", "common"]),
        (["model.widths=[4,8,5],[4,8,6]"], ["widths=[4,8,5]", "widths=[4,8,6]"]),
        (["recipe.label_smoothing=0,0.1", "compile=true,false"], None),
        (["recipe.optimizer.lr=0.1,0.2"], ["lr=0.1", "lr=0.2"]),
        (["recipe.batch_size=range(1,4)"], ["batch_size=1", "batch_size=2", "batch_size=3"]),
    ],
)
def test_arms_are_named_by_what_they_differ_in(swept, names):
    names = names or [
        f"label_smoothing={value} compile={on}"
        for value in ("0", "0.1")
        for on in ("True", "False")
    ]
    arms = read_arms(["data=digits", *swept])
    assert list(arms.overrides) == names
    assert all(given[0] == "data=digits" for given in arms.overrides.values())
    assert len({Job(name, given, 0).folder for name, given in arms.overrides.items()}) == len(names)


def test_an_experiment_of_one_s_own(tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n"
    text += "      model.attention: common,none\n      recipe.epochs: 3\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    arms = read_arms(["experiment=mine", "data=digits", f"--config-dir={tmp_path}"])
    common = ("recipe.epochs=3", "experiment=mine", "data=digits", "hydra.mode=RUN")
    assert arms.overrides == {
        name: (f"--config-dir={tmp_path}", *common, f"model.attention={name}")
        for name in ("common", "none")
    }
    assert plan(Job("none", arms.overrides["none"], 0)).unit == "image"


def test_what_a_run_costs_is_known_before_it():
    tiny = ("data=digits", "model.widths=[4,8,5]")
    with_it, without = (
        plan(Job(a, (*tiny, f"model.attention={a}"), 0)) for a in ("common", "none")
    )
    assert with_it.macs > without.macs
    assert with_it.parameters > without.parameters


WRONG = [
    (["model=sagan"], "nothing to compare: give a key several values"),
    (["experiment=sagan_long"], "nothing to compare"),
    (
        ["experiment=flow_atention"],
        "experiment=flow_atention: no such choice; did you mean flow_at",
    ),
    (["model.atention=common,none"], "unknown key 'model.atention'; did you mean model.attention"),
    (["model.attention"], "cannot read 'model.attention'; expected key=value"),
    (["model.attention=none,none"], "model.attention=none is there twice"),
    (["recipe.optimizer.lr=interval(0.1,0.2)"], "arms are named one by one"),
    (["model=glob(*)"], "arms are named one by one, model=ONE,OTHER"),
    (["model=sagan,vit", "seed=1,2"], "seed=1,2: the seeds come with --seeds N"),
    (["model=sagan,vit", "seed=1"], "the seeds come with --seeds N"),
    (["model=sagan,vit", "resume=auto"], "goes on by itself"),
    (["model=sagan,vit", "hydra.run.dir=x"], "a folder of its own below --folder"),
    (["model=sagan,vit", "launcher=slurm"], "one after the other"),
    (["model=sagan,vit", "--seeds", "0"], "--seeds 0: expected how many, 1 or more"),
    (["model=sagan,vit", "--config-dir", "nowhere"], "nowhere: there is no such folder"),
    (["model=sagan,vit", "--only", "unet"], "--only unet: there is no such run; there are: sagan"),
    (["model=sagan,vit", "-m"], "unknown option '-m'"),
    (["no_list.yaml"], "no_list.yaml cannot be read"),
    (["list.yaml", "--seeds", "3"], "list.yaml says the seeds of each run itself"),
    (["list.yaml", "model=vit"], "model=vit: a list of runs says all"),
    (["data=digits", "model.attention=common,comon"], "comon: model.attention='comon': expected"),
    (["data=digits", "model.widths=[4,8,5],[]"], "widths=[]: model: "),
    (["data=digits", "model=sagan,unet", "model.patch_size=1"], "unknown key 'model.patch_size'"),
]


@pytest.mark.sweep(4)
@pytest.mark.parametrize(("arguments", "said"), WRONG)
def test_what_cannot_be_compared_is_refused_by_name(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.yaml").write_text("one: {overrides: [], seeds: [1]}")
    assert main(["compare", *arguments]) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert err.startswith("error: ")
    assert out == ""
    assert not (tmp_path / "outputs").exists()
