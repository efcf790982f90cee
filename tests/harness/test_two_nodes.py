"""Two nodes with a network between them: one run, files on the first, and what a failure leaves."""

import subprocess
import time

import pytest
from equal_runs import check_same_end, check_same_first_steps, check_same_samples, equal_run
from killing import log
from launching import finish, start, torchrun, wait_for_steps
from recorded import notes
from two_nodes import ADDRESSES, TwoNodes

# Minutes; the processes end after it and what their own end takes.
TIMEOUT, MARGIN = 0.2, 30
TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_nodes=2"]


@pytest.fixture(scope="module")
def nodes():
    try:
        made = TwoNodes()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {error}")
    yield made
    made.close()


@pytest.fixture(scope="module")
def arguments(place):
    return [*equal_run(place / "images"), "resume=auto", f"distributed_timeout={TIMEOUT}"]


@pytest.fixture(scope="module")
def one(runs, place):
    command = [*equal_run(place / "images"), "hydra.run.dir=one"]
    assert runs.run(command, place, CVATTN_NOTES=str(place / "notes_one")) == 0, log(place)
    return place / "notes_one", place / "one"


def started(nodes, place, arguments, written, port, *, own_disk=False, **environment):
    """The run by torchrun on both; with ``own_disk`` the second one has a folder of its own."""
    processes = []
    for node in range(2):
        where = [f"--node-rank={node}", f"--master-addr={ADDRESSES[0]}", f"--master-port={port}"]
        command = [*torchrun(1, "--nnodes=2", *where), *arguments, *TWO]
        command = nodes.command(node, command, disk=str(place) if own_disk and node else "")
        processes.append(start(command, place, written, **nodes.variables(node), **environment))
    return processes


@pytest.mark.slow
def test_without_a_shared_file_system(nodes, arguments, one, place, tmp_path):
    """The first node has the files; going on there needs them on both, and that is said."""
    written, disk = place / "notes_apart", tmp_path / "disk"
    disk.mkdir()
    command = [*arguments, f"hydra.run.dir={disk}/run"]
    processes = started(nodes, disk, command, written, 29511, own_disk=True)
    for code, output in map(finish, processes):
        assert code == 0, output
    check_same_samples(one[0], written)
    check_same_first_steps(one[0], written)
    check_same_end(one[1], disk / "run")
    more = [*command, "trainer.max_epochs=3"]
    processes = started(nodes, disk, more, written, 29512, own_disk=True)
    codes, outputs = zip(*map(finish, processes), strict=True)
    assert 0 not in codes
    assert "the first process starts from a checkpoint after epoch 2 (16 steps)" in outputs[1]
    assert "from the beginning (no checkpoint): the run folder has to be the same" in outputs[1]
    assert len(notes(written)[0]) == 16


@pytest.mark.slow
def test_the_network_and_then_a_node_are_lost(nodes, arguments, one, place, runs):
    """All that is left ends in the stated time, and one process goes on to the same end."""
    written = place / "notes_lost"
    command = [*arguments, "hydra.run.dir=lost"]
    for failure, steps in ((nodes.cut, 3), (lambda: nodes.kill(1), 13)):
        processes = started(nodes, place, command, written, 29520 + steps, CVATTN_SLOW="0.1")
        wait_for_steps(written, steps, processes)
        failure()
        begun = time.monotonic()
        codes, outputs = zip(*map(finish, processes), strict=True)
        assert time.monotonic() - begun < 60 * TIMEOUT + MARGIN
        assert codes[0] == 1
        assert "stopped: another process of this run has ended, or did not answer" in outputs[0]
        assert "ckpt_path=lost/checkpoints/last.ckpt" in outputs[0]
        nodes.mend()
    alone = ["trainer.strategy=auto", "trainer.num_nodes=1", "trainer.accelerator=cpu"]
    environment = {"CVATTN_NOTES": str(written)}
    assert runs.run([*command, *alone], place, **environment) == 0, log(place)
    check_same_samples(one[0], written)
    check_same_first_steps(one[0], written)
    check_same_end(one[1], place / "lost")
