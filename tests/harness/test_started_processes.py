"""How processes were started, read from the environment; what they would do wrong is said."""

import json

import pytest
from launching import hand_environments, srun_environments
from runs import CONF, TINY

from cvattn.harness import ConfigError, check_command_line
from cvattn.harness.config import decisions, launchers
from cvattn.harness.config.launchers import Launch, is_first, launch

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "3", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3"}
SRUN = srun_environments(2, 3)[4]
HAND = hand_environments(2)[1]
LIGHTNING = {**HAND, "WORLD_SIZE": "4", "LOCAL_RANK": "1"}  # what it starts itself


@pytest.fixture
def surroundings(monkeypatch):
    """``surroundings({...})``: those variables, and none of a launcher that runs the tests."""
    ours = {*TORCHRUN, *SRUN, *LIGHTNING, decisions._VARIABLE}

    def make(environment):
        for name in ours:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    launchers.store.cache_clear()
    yield make
    launchers.store.cache_clear()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (TORCHRUN, Launch("torchrun", 3, 6, 3)),
        ({**TORCHRUN, "WORLD_SIZE": "1"}, None),
        (SRUN, Launch("srun", 4, 6, 3)),
        ({**SRUN, **TORCHRUN}, Launch("torchrun", 3, 6, 3)),  # srun torchrun ...
        ({**SRUN, "SLURM_NTASKS": "1"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "interactive"}, None),  # in salloc's shell
        (HAND, Launch("hand", 1, None, 1)),
        (LIGHTNING, None),
    ],
)
def test_what_started_this_process(surroundings, environment, expected):
    surroundings(environment)
    assert launch() == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SLURM_NTASKS": "4"}, r"SLURM has 4 tasks.* Put srun before python"),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}, r"--ntasks-per-node= in place of --ntasks="),
        ({**SRUN, "SLURM_JOB_NAME": "bash"}, r"srun started 6 tasks .* --job-name=train"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, r"mpirun started 2 processes .* torchrun or srun"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, r"something started 2 processes \(WORLD_SIZE\)"),
        ({**TORCHRUN, "RANK": "x"}, r"RANK='x' in the environment: expected a whole number"),
    ],
)
def test_what_would_wait_or_train_alone(surroundings, environment, message):
    surroundings(environment)
    with pytest.raises(ConfigError, match=message):
        launch()


@pytest.mark.parametrize("number", range(4))
def test_one_process_is_the_first(surroundings, number):
    for environment in (srun_environments(2, 2)[number], {**TORCHRUN, "RANK": str(number)}):
        surroundings(environment)
        assert is_first() == (number == 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "arguments", "message"),
    [
        (
            {**TORCHRUN, "WORLD_SIZE": "3"},
            [],
            r"torchrun started 3 processes.* add trainer=ddp trainer\.devices=3 \(",
        ),
        (SRUN, [], r"srun started 6 .* add trainer=ddp trainer\.devices=3 trainer\.num_nodes=2 \("),
        (
            SRUN,
            ["trainer=ddp"],
            r"ask for others: give trainer=ddp trainer\.devices=3 trainer\.num",
        ),
        (SRUN, ["trainer.devices=6"], r"give trainer=ddp trainer\.devices=3 trainer\.num_nodes=2"),
        (
            {},
            ["trainer=ddp", "trainer.num_nodes=2"],
            r"torchrun or srun, or .* NODE_RANK= \(0 to 1",
        ),
        (
            SRUN,
            ["trainer=ddp", "trainer.devices=3", "trainer.num_nodes=2", "-m"],
            r"the whole multi",
        ),
    ],
)
def test_processes_that_do_not_fit_the_trainer(surroundings, environment, arguments, message):
    surroundings(environment)
    with pytest.raises(ConfigError, match=message):
        check_command_line([*TINY, *arguments], CONF)


def test_a_node_without_the_checkpoint(surroundings):
    """What the first process has said is in the environment, as in one that Lightning starts."""
    said = {"start": ["a checkpoint after epoch 3 (75 steps)", "outputs/mine/last.ckpt"]}
    surroundings({**HAND, decisions._VARIABLE: json.dumps(said)})
    nodes = ["trainer=ddp", "trainer.devices=1", "trainer.num_nodes=2"]
    with pytest.raises(
        ConfigError,
        match=r"starts from a checkpoint after epoch 3 \(75 steps\) \(outputs/mine/last.ckpt\), "
        r"and this one on .* from the beginning .* copy it from the first node",
    ):
        check_command_line([*TINY, *nodes], CONF)


def test_no_word_from_the_first_process(surroundings, monkeypatch):
    surroundings(HAND)
    monkeypatch.setattr(launchers, "PATIENCE", launchers.timedelta(seconds=1))
    with pytest.raises(
        ConfigError, match=r"no word from the first process at 127\.0\.0\.1:\d+ \(MAST"
    ):
        launchers.store()


def test_the_first_process_and_another_agree(surroundings):
    """Both in this one: the store is at the place where torch's process group looks for its own."""
    surroundings({**HAND, "NODE_RANK": "0"})
    first = launchers.store()
    made = decisions.decide("seed", lambda: decisions.Decision("7", "drawn"))
    launchers.store.cache_clear()
    surroundings(HAND)
    assert decisions.decide("seed", lambda: decisions.Decision("8", "drawn")) == made
    assert first is not None
