"""However its processes are started and stopped, a run is the same run, and that of one process."""

import json
import os
import re
import shutil
import signal
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from equal_runs import check_same_end, check_same_first_steps, check_same_samples, equal_run
from killing import log
from launching import (
    DOOR,
    finish,
    hand_environments,
    srun_environments,
    start,
    torchrun,
    wait_for_steps,
)
from recorded import notes
from torch import distributed

from cvattn.harness.config.saved_run import open_training
from cvattn.harness.stopping import Stopping

PROCESSES = ["trainer=ddp", "trainer.accelerator=cpu"]
SLOW = {"CVATTN_SLOW": "0.25"}  # long enough for a signal to come in between on a busy machine


@pytest.fixture(scope="module")
def arguments(place):
    return equal_run(place / "images")


@pytest.fixture(scope="module")
def one(runs, place, arguments):
    """The run by one process: its notes, and its folder."""
    environment = {"CVATTN_NOTES": str(place / "notes_one")}
    assert runs.run([*arguments, "hydra.run.dir=one"], place, **environment) == 0, log(place)
    return place / "notes_one", place / "one"


def check_equal(one, written, folder):
    check_same_samples(one[0], written)
    check_same_first_steps(one[0], written)
    check_same_end(one[1], folder)


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
    assert json.loads((folder / "summary.json").read_text())["processes"] == nodes * tasks
    check_equal(one, written, folder.rename(place / f"srun{nodes}"))


@pytest.mark.slow
@pytest.mark.parametrize("hold", ["mapped", "stream"])
def test_pictures_that_are_not_in_memory(runs, place, arguments, one, hold):
    """One file that both make and map, or none; the same run as of pictures in memory."""
    written, cache = place / f"notes_{hold}", place / f"cache_{hold}"
    more = ["trainer.devices=2", f"data.hold={hold}", f"hydra.run.dir={hold}"]
    command = [*torchrun(2), *arguments, *PROCESSES, *more]
    code, output = finish(start(command, place, written, CVATTN_CACHE=str(cache)))
    assert code == 0, output
    check_equal(one, written, place / hold)
    decoded = [path.name for path in cache.glob("folder-train-*.images")]
    assert len(decoded) == (hold == "mapped"), decoded


@pytest.mark.slow
def test_the_same_command_on_each_node(runs, place, arguments, one):
    written = place / "notes_hand"
    more = ["trainer.devices=1", "trainer.num_nodes=2"]
    environments = [{**e, "CVATTN_NOTES": str(written)} for e in hand_environments(2)]
    runs.start_together([*arguments, *PROCESSES, *more], place, environments)
    assert set(runs.wait_together()) == {0}, log(place)
    (folder,) = (place / "outputs").iterdir()
    check_equal(one, written, folder.rename(place / "hand"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "number"), [("torchrun", signal.SIGTERM), ("lightning", signal.SIGUSR1)]
)
def test_the_launcher_is_told_to_stop(place, arguments, one, launcher, number):
    """Its processes leave after the same batch, and the same command goes on there."""
    written, folder = place / f"notes_{launcher}", place / launcher
    door = torchrun(2) if launcher == "torchrun" else [sys.executable, str(DOOR)]
    more = ["trainer.devices=2", f"hydra.run.dir={folder}", "resume=auto"]
    command = [*door, *arguments, *PROCESSES, *more]
    process = start(command, place, written, **SLOW)
    wait_for_steps(written, 3, [process])
    process.send_signal(number)
    code, output = finish(process)
    assert code == (1 if launcher == "torchrun" else 128 + number), output
    assert output.count("continue with\n") == 1
    behind = len(notes(written)[0])
    position = open_training(str(folder / "checkpoints" / "last.ckpt")).position
    assert (position.epoch, position.batch) == divmod(behind, 8)
    code, output = finish(start(command, place, written))
    assert code == 0, output
    assert output.count("Next:") == 1
    assert len(notes(written)[0]) == 16  # none twice
    check_equal(one, written, folder)


@pytest.mark.slow
def test_a_queue_stops_it_and_it_goes_on_with_other_processes(runs, place, arguments, one):
    """2 tasks, of which one gets the notice; then 4, which are ended; then one process."""
    written = place / "notes_requeued"
    common = {"CVATTN_NOTES": str(written)}
    again = [*arguments, "hydra.run.dir=requeued", "resume=auto", "trainer.accelerator=cpu"]
    for tasks, number in ((2, signal.SIGUSR1), (4, signal.SIGTERM)):
        environments = [{**e, **common, **SLOW} for e in srun_environments(1, tasks)]
        before = len(notes(written).get(0, []))
        several = ["trainer.strategy=ddp", f"trainer.devices={tasks}"]
        pids = runs.start_together([*again, *several], place, environments)
        wait_for_steps(written, before + 3)
        for pid in pids[1:]:
            os.kill(pid, number)
        assert set(runs.wait_together()) == {128 + number}, log(place)
        position = open_training(str(place / "requeued" / "checkpoints" / "last.ckpt")).position
        assert (position.epoch, position.batch) == divmod(len(notes(written)[0]), 8)
    three = [{**e, **common} for e in srun_environments(1, 3)]
    runs.start_together([*again, "trainer.strategy=ddp", "trainer.devices=3"], place, three)
    assert set(runs.wait_together()) == {2}
    assert "batch_size=8 is the batch of all 3 processes together and is not divisible" in log(
        place
    )
    alone = ["trainer.strategy=auto", "trainer.devices=1"]
    assert runs.run([*again, *alone], place, **common) == 0, log(place)
    assert len(notes(written)[0]) == 16  # none twice
    check_equal(one, written, place / "requeued")


@pytest.fixture
def asking(monkeypatch, tmp_path):
    """One of two processes in training; its signals, its trainer, and what the other one has."""
    stopping = Stopping(tmp_path)
    trainer = SimpleNamespace(
        world_size=2,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        fit_loop=SimpleNamespace(_should_accumulate=lambda: False),
        _signal_connector=SimpleNamespace(received_sigterm=False),
    )
    monkeypatch.setattr(stopping, "_training", True)
    monkeypatch.setattr(stopping, "_fitting", True)
    other = SimpleNamespace(has=0, meanwhile=lambda: None)

    def all_reduce(number, operation):
        number.fill_(max(int(number), other.has))
        other.meanwhile()

    monkeypatch.setattr(distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail(f"left at once with {code}"))
    return stopping, trainer, other


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_that_comes_while_the_processes_ask_each_other(asking, number):
    """It waits for the next batch: whoever leaves before the others know has them wait for it."""
    stopping, trainer, other = asking
    other.meanwhile = lambda: stopping.receive(number, None)
    stopping.on_train_batch_end(trainer, None, None, None, 0)
    assert not trainer._signal_connector.received_sigterm
    assert stopping.number == number
    other.meanwhile = lambda: None
    stopping.on_train_batch_end(trainer, None, None, None, 1)
    assert trainer._signal_connector.received_sigterm


@pytest.mark.parametrize("late", [False, True], ids=["while they ask", "afterwards"])
def test_a_signal_that_another_process_told_of_before(asking, late):
    """Its own copy is not a second press: what is being saved is saved."""
    stopping, trainer, other = asking
    other.has = signal.SIGTERM
    other.meanwhile = (lambda: None) if late else lambda: stopping.receive(signal.SIGTERM, None)
    stopping.on_train_batch_end(trainer, None, None, None, 0)
    stopping.receive(signal.SIGTERM, None)
    assert trainer._signal_connector.received_sigterm
    assert stopping.number == signal.SIGTERM


@pytest.mark.slow
def test_a_process_is_killed(runs, place, arguments):
    """The other one says so, and ends."""
    written = place / "notes_killed"
    common = {"CVATTN_NOTES": str(written), **SLOW}
    pids = runs.start_together(
        [*arguments, *PROCESSES, "trainer.devices=2", "hydra.run.dir=killed"],
        place,
        [{**e, **common} for e in srun_environments(1, 2)],
    )
    wait_for_steps(written, 3)
    (place / "log.txt").write_text("")
    os.kill(pids[1], signal.SIGKILL)
    killed = time.monotonic()
    assert runs.wait_together() == [1, -signal.SIGKILL]
    assert time.monotonic() - killed < 10
    assert "stopped: another process of this run has ended" in log(place)
    assert "ckpt_path=killed/checkpoints/last.ckpt" in log(place)
    assert "Traceback" not in log(place)


@pytest.mark.slow
def test_processes_with_other_data_and_settings(runs, place, arguments):
    """Each has a folder of its own, as on nodes without a shared one; one image is another."""
    for number in "01":
        shutil.copytree(place / "images", place / f"images{number}")
    (place / "images1" / "test" / "dark" / "0.png").unlink()
    (place / "log.txt").write_text("")
    own = "${oc.env:SLURM_PROCID}"
    different = [f"data.root={place}/images{own}", f"notes={own}", "hydra.run.dir=different"]
    together = [*arguments, *PROCESSES, "trainer.devices=2", *different]
    runs.start_together(together, place, srun_environments(1, 2))
    assert set(runs.wait_together()) == {2}
    said = log(place)
    assert "error: the processes of this run are not alike: " in said
    assert re.search(r"data.test_size is 24 in process 0 on .* and 23 in process 1 on ", said)
    assert re.search(r"notes is 0 in process 0 on .* and 1 in process 1 on ", said)
    assert "data.root" not in said
    assert not list((place / "different").glob("*"))
