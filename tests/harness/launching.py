"""Several processes of one run, started in every way that there is."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from recorded import notes

HERE = Path(__file__).parent
DOOR = HERE / "recorded.py"


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


def srun_environments(nodes: int, tasks: int, *, job: int = 4711) -> list[dict[str, str]]:
    """What SLURM tells each of the tasks of a step, ``tasks`` on each of some nodes.

    As srun's manual lists it; all nodes are this machine.
    """
    shared = {
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NAME": "train",
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": str(nodes * tasks),
        "SLURM_STEP_NUM_TASKS": str(nodes * tasks),
        "SLURM_NTASKS_PER_NODE": str(tasks),
        "SLURM_NNODES": str(nodes),
        "SLURM_NODELIST": "127.0.0.1",
        "MASTER_PORT": str(free_port()),  # else of the job's number, the same in all tests
    }
    return [
        {
            **shared,
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank % tasks),
            "SLURM_NODEID": str(rank // tasks),
        }
        for rank in range(nodes * tasks)
    ]


def hand_environments(nodes: int) -> list[dict[str, str]]:
    """What a person sets before the same command on each node; all nodes are this machine."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [{**place, "NODE_RANK": str(rank)} for rank in range(nodes)]


def torchrun(processes: int, *options: str) -> list[str]:
    """The beginning of the command."""
    where = ["--standalone"] if not options else list(options)
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    return [*launcher, *where, str(DOOR)]


def start(
    command: Sequence[str], cwd: Path, notes: Path, **environment: str
) -> subprocess.Popen[str]:
    """The command in a process group of its own, to be ended with all that it started."""
    return subprocess.Popen(
        command,
        cwd=cwd,
        env={
            **os.environ,
            "CVATTN_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "CVATTN_NOTES": str(notes),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_steps(
    written: Path, count: int, processes: Sequence[subprocess.Popen[str]] = ()
) -> None:
    """Until the first process of a run has begun so many steps; those that run it are alive."""
    until = time.monotonic() + 300  # a machine may be busy
    while len(notes(written).get(0, [])) < count:
        over = [finish(process) for process in processes if process.poll() is not None]
        assert not over, over
        assert time.monotonic() < until, "no steps"
        time.sleep(0.02)


def finish(process: subprocess.Popen[str], timeout: float = 300) -> tuple[int, str]:
    """Its exit code and what it printed; whatever it leaves behind is ended."""
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        end(process)
    return process.returncode, output


def end(process: subprocess.Popen[str]) -> None:
    """Kill the process and what it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
