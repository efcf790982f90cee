"""Runs examples of the pages in processes that need not import everything again.

Started by ``test_page_examples.py`` with the Python of an environment that has the wheel alone. For
each line on its standard input (JSON) it forks a child that becomes what the line says, and says
its exit code in the end:

- ``words``: of ``python ...``, ``-m cvattn ...`` or a file;
- ``code``: pieces of Python, run one after the other under one set of names.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import IO

sys.path.pop(0)  # the folder of this file, which is in the checkout

import hydra.main  # noqa: F401
import matplotlib.font_manager
import sklearn.datasets  # noqa: F401
import timm  # noqa: F401
import torchvision  # noqa: F401

import cvattn.cli.compare
import cvattn.cli.cost
import cvattn.cli.evaluate
import cvattn.cli.explore
import cvattn.cli.export
import cvattn.cli.judge
import cvattn.cli.predict
import cvattn.cli.sample
import cvattn.comparison.queue
import cvattn.harness.fit
import cvattn.harness.reporting.panels
import cvattn.harness.reporting.run_pictures

LONGEST = 300  # seconds of one example, on a busy machine


def become(job: dict) -> int:
    """The child: what is asked for, with its output in a file; its exit code."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(log, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.alarm(LONGEST)
    os.chdir(job["cwd"])
    os.environ |= job["environment"]
    cvattn.comparison.queue.subprocess = SimpleNamespace(Popen=Forked, STDOUT=subprocess.STDOUT)
    if "code" in job:
        return code_of(run_code, job["name"], job["code"])
    return code_of(run_words, job["words"])


def code_of(run: Callable[..., None], *arguments: object) -> int:
    """The exit code of a process that does this and nothing else."""
    code = 0
    try:
        run(*arguments)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
        if code and not isinstance(left.code, int):
            print(left.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


class Forked:
    """What ``cvattn compare`` starts as a process of its own, ``python -m cvattn train``."""

    def __init__(
        self,
        command: list[str],
        process_group: int,
        env: Mapping[str, str],
        stdout: IO[bytes] | None = None,
        stderr: int | None = None,
    ) -> None:
        sys.stdout.flush()
        self.returncode: int | None = None
        self.child = os.fork()
        if not self.child:
            if stdout is not None:
                for number in (1, 2):
                    os.dup2(stdout.fileno(), number)
            os.environ.update(env)
            os._exit(code_of(run_words, command[1:]))

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        if self.returncode is None:
            child, status = os.waitpid(self.child, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if child else None
        return self.returncode


def run_code(name: str, pieces: list[str]) -> None:
    """Warnings are errors, as in the tests: no page may show what is deprecated."""
    sys.path.insert(0, "")
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "`torch.jit.", DeprecationWarning)  # torch's compiler
    names = {"__name__": "__main__"}
    for number, code in enumerate(pieces, start=1):
        exec(compile(code, f"{name}, block {number}", "exec"), names)


def run_words(words: list[str]) -> None:
    """As Python would: modules are found in the working directory, or beside the file."""
    if words[0] == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(words[0]).absolute().parent))
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def main() -> None:
    where = Path(cvattn.__file__)
    assert where.is_relative_to(sys.prefix), where
    matplotlib.font_manager.findfont("DejaVu Sans")  # which every picture would look for
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if not child:
            os._exit(become(job))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
