"""Run tests of this repository in a new process against a changed copy of the package."""

import multiprocessing
import os
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

import pytest
from faults import Fault

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent / "cvattn"
SECONDS = 120

# Processes forked from one that has loaded what is slow to load: it takes longer than the tests.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["torch", "hypothesis.strategies", "hydra", "pytest"])


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
        code: pytest's: 0 = passed, 1 = a test failed; others = the tests did not run.
        failed: the failing tests, each with its message.
        errors: what broke outside the tests themselves.
        output: all that was printed.
    """

    code: int | None
    failed: dict[str, str]
    errors: list[str]
    output: str


def changed(fault: Fault, package: Path = PACKAGE) -> str:
    """The text of the fault's file with the fault in it."""
    text = (package / fault.file).read_text(encoding="utf-8")
    found = text.count(fault.old)
    assert found == 1, (
        f"the table of faults is out of date: {fault.name!r} changes a text that occurs {found} "
        f"times in cvattn/{fault.file}, expected once: {fault.old!r}"
    )
    return text.replace(fault.old, fault.new)


def run_tests(folder: Path, tests: tuple[str, ...], fault: Fault | None = None) -> Outcome:
    """Copy the package to an empty folder, put the fault in, and run the tests on it."""
    copy = folder / "cvattn"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    if fault is not None:
        (copy / fault.file).write_text(changed(fault, copy), encoding="utf-8")
    process = _processes.Process(target=_in_new_process, args=(folder, tests))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    failed, errors = {}, []
    report = folder / "report.xml"
    cases = ElementTree.parse(report).iter("testcase") if report.exists() else ()
    for case in cases:
        for found in case.findall("failure"):
            failed[f"{case.get('classname')}::{case.get('name')}"] = found.get("message", "")
        errors += [found.get("message", "") for found in case.findall("error")]
    return Outcome(process.exitcode, failed, errors, (folder / "output.txt").read_text())


def _in_new_process(folder: Path, tests: tuple[str, ...]) -> None:
    os.chdir(folder)
    with open("output.txt", "w", encoding="utf-8") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    assert "cvattn" not in sys.modules
    sys.path.insert(0, str(folder))
    import cvattn

    assert Path(cvattn.__file__).is_relative_to(folder), f"imported {cvattn.__file__}"
    # Plain assertions: rewriting them would be work for all plugins that are loaded.
    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--assert=plain"]
    options += ["--junitxml=report.xml"]
    sys.exit(int(pytest.main([*options, *(str(TESTS / test) for test in tests)])))
