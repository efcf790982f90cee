"""Runs of ``train.py`` in processes of their own that need not import everything again.

Started by ``killing.py``. It has imported the training stack and used none of it; for each line on
its standard input (JSON) it forks a child that becomes the run, says its process id, and in the end
its exit code.

A job of several processes has ``together``, the environment of each; their numbers and codes are
said in lines of their own. With ``CVATTN_NOTES`` in it, a process writes down what it trains on
(``recorded.py``).

A job may have a moment at which the child sends itself signals, at the n-th time that it comes to
it: ``{"at": NAME, "count": n, "signals": [9]}``.
"""

import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path

import cvattn.data.images.folder
import cvattn.harness.fit
import cvattn.harness.reporting.panels
import cvattn.harness.reporting.pictures
import cvattn.harness.reporting.run_pictures
from cvattn.harness.reporting.csv_log import CSVLog
from cvattn.tasks import ClassificationTask

TRAIN = Path(__file__).parents[2] / "train.py"


class Moment:
    """Sends the signals at the ``count``-th call of ``reached``."""

    def __init__(self, count: int, signals: list[int]) -> None:
        self.left, self.signals = count, signals

    def reached(self) -> None:
        self.left -= 1
        if self.left == 0:
            for number in self.signals:
                os.kill(os.getpid(), number)
                time.sleep(0.01)

    def before(self, owner: object, name: str) -> None:
        honest = getattr(owner, name)

        def wrapped(*args, **kwargs):
            self.reached()
            return honest(*args, **kwargs)

        setattr(owner, name, wrapped)


def prepare(at: str, moment: Moment) -> None:
    """Make the moment come at a step ("batch", "test", ...) or at a file ("half:summary.json")."""
    steps = {
        "data": (cvattn.data.images.folder.FolderData, "setup"),
        "batch": (ClassificationTask, "training_step"),
        "validation": (ClassificationTask, "validation_step"),
        "test": (ClassificationTask, "test_step"),
        "curves": (cvattn.harness.reporting.run_pictures, "draw_curves"),
        "attention": (cvattn.harness.reporting.run_pictures, "draw_attention"),
        "summary": (sys.modules["cvattn.harness.fit"], "write_summary"),
        "end": (cvattn.harness.reporting.panels, "show_end"),
    }
    if at in steps:
        moment.before(*steps[at])
    elif at == "row":  # of the epoch's training, which comes after the checkpoint
        log = CSVLog.log_metrics

        def logged(self, metrics, step=None):
            if "train/loss" in metrics:
                moment.reached()
            log(self, metrics, step)

        CSVLog.log_metrics = logged
    else:
        how, _, name = at.partition(":")
        sync, replace = os.fsync, Path.replace

        def synced(number):
            if how == "half" and name in os.readlink(f"/proc/self/fd/{number}"):
                if moment.left == 1:
                    os.ftruncate(number, os.fstat(number).st_size // 2)
                moment.reached()
            sync(number)

        def replaced(self, target):
            if how == "rename" and Path(target).name == name:
                moment.reached()
            return replace(self, target)

        os.fsync, Path.replace = synced, replaced


def become(job: dict) -> None:
    """The child: the run, with its output in a file."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(log, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(job["cwd"])
    os.environ |= job["environment"]
    import tempfile

    tempfile.tempdir = None
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == 2 else signal.SIG_DFL)
    if "CVATTN_NOTES" in os.environ:
        import recorded

        recorded.record(Path(os.environ["CVATTN_NOTES"]))
    if job["moment"]:
        moment = job["moment"]
        prepare(moment["at"], Moment(moment["count"], moment["signals"]))
    sys.argv = [str(TRAIN), *job["arguments"]]
    runpy.run_path(str(TRAIN), run_name="__main__")


def main() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        pids = []
        for environment in job.get("together", [{}]):
            pids.append(os.fork())
            if not pids[-1]:
                become(job | {"environment": job["environment"] | environment})
                sys.exit(0)
            print(pids[-1], flush=True)
        for pid in pids:
            _, status = os.waitpid(pid, 0)
            print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
