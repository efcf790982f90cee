"""However its processes are started, a run is the same run, and the one of a single process."""

import json
import sys
from pathlib import Path

import pytest
import torch
from killing import log, small_run
from launching import DOOR, finish, hand_environments, srun_environments, start, torchrun
from recorded import notes

# Draws of dropout, of paths and of mixing differ from process to process; the rest does not.
EQUAL = ["model.dropout=0.0", "model.drop_path=0.0", "recipe.mixup=0.0", "recipe.batch_size=8"]
PROCESSES = ["trainer=ddp", "trainer.accelerator=cpu"]
# The logits of a batch are made float32 before the loss; weights and gradients are float64.
EPS = torch.finfo(torch.float32).eps


@pytest.fixture(scope="module")
def arguments(place):
    run = [text for text in small_run(place / "images") if "precision" not in text]
    return [*run, *EQUAL, "trainer.precision=64-true"]


@pytest.fixture(scope="module")
def one(runs, place, arguments):
    """The run by one process: its notes, and its folder."""
    environment = {"CVATTN_NOTES": str(place / "notes_one")}
    assert runs.run([*arguments, "hydra.run.dir=one"], place, **environment) == 0, log(place)
    return place / "notes_one", place / "one"


def check_equal(one, several: tuple[Path, Path], processes: int) -> None:
    """The same samples in the same order, the same losses, the same weights.

    By the rule: a loss of float32 sums may be off by a few eps; what three steps have changed in
    the weights by 1e-4 of itself, which is no sample, no factor and no order of samples apart.
    """
    found, expected = notes(several[0]), notes(one[0])[0]
    assert sorted(found) == list(range(processes))
    assert {len(steps) for steps in found.values()} == {len(expected)}
    for number, alone in enumerate(expected):
        parts = [found[rank][number] for rank in range(processes)]
        assert [p for part in parts for p in part["positions"]] == alone["positions"], number
        assert {len(part["positions"]) for part in parts} == {8 // processes}
        if number < 3:
            mean = sum(part["loss"] for part in parts) / processes
            assert abs(mean - alone["loss"]) <= 8 * EPS * abs(alone["loss"]), number
    begin = [weights(place / "weights0.pt") for place in (one[0], several[0])]
    then = [weights(place / "weights3.pt") for place in (one[0], several[0])]
    assert torch.equal(*begin)
    assert (then[1] - then[0]).norm() <= 1e-5 * (then[0] - begin[0]).norm()
    last = [place / "checkpoints" / "last.ckpt" for place in (one[1], several[1])]
    ends = [torch.load(path, weights_only=True)["state_dict"] for path in last]
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-3, atol=1e-5, msg=name)


def weights(path: Path) -> torch.Tensor:
    """All of them, one after another."""
    return torch.cat([value.flatten().double() for value in torch.load(path).values()])


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("nodes", "tasks"), [pytest.param(1, 2, id="2"), pytest.param(2, 2, id="2x2")]
)
def test_srun(runs, place, arguments, one, nodes, tasks):
    written = place / f"notes_srun{nodes}"
    more = [f"trainer.devices={tasks}", f"trainer.num_nodes={nodes}"]
    environments = [
        {**environment, "CVATTN_NOTES": str(written)}
        for environment in srun_environments(nodes, tasks)
    ]
    runs.start_together([*arguments, *PROCESSES, *more], place, environments)
    assert set(runs.wait_together()) == {0}, log(place)
    (folder,) = (place / "outputs").iterdir()  # its name has a time and a process in it
    assert summary(folder)["processes"] == nodes * tasks
    check_equal(one, (written, folder), nodes * tasks)
    folder.rename(place / f"srun{nodes}")


@pytest.mark.slow
def test_the_same_command_on_each_node(runs, place, arguments, one):
    written = place / "notes_hand"
    more = ["trainer.devices=1", "trainer.num_nodes=2"]
    environments = [{**e, "CVATTN_NOTES": str(written)} for e in hand_environments(2)]
    runs.start_together([*arguments, *PROCESSES, *more], place, environments)
    assert set(runs.wait_together()) == {0}, log(place)
    (folder,) = (place / "outputs").iterdir()
    check_equal(one, (written, folder), 2)
    folder.rename(place / "hand")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "lightning"])
def test_commands(place, arguments, one, launcher):
    written, folder = place / f"notes_{launcher}", place / launcher
    door = torchrun(2) if launcher == "torchrun" else [sys.executable, str(DOOR)]
    more = ["trainer.devices=2", f"hydra.run.dir={folder}"]
    code, output = finish(start([*door, *arguments, *PROCESSES, *more], place, written))
    assert code == 0, output
    assert output.count("Next:") == 1
    check_equal(one, (written, folder), 2)
