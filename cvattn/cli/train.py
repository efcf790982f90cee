"""``cvattn train KEY=VALUE ...``: what ``train.py`` does in the repository, anywhere."""

import runpy
import sys
from collections.abc import Sequence


def run(arguments: Sequence[str]) -> int:
    """The command; leaves through SystemExit where a run could not be started or was stopped."""
    sys.argv = ["cvattn train", *arguments]
    # As a program of its own: further processes of a distributed run are started as this one was.
    runpy.run_module("cvattn.harness.main", run_name="__main__", alter_sys=True)
    return 0
