"""Faults put into a copy of the package are caught by our own tests."""

import ast

import pytest
from faults import FAULTS
from mutant import TESTS, changed, run_tests

# The two that a bare pytest tries as well.
QUICK = ("scale by embed_dim instead of head_dim", "gamma dropped")
ALL_TESTS = tuple(dict.fromkeys(test for fault in FAULTS for test in fault.tests))
QUICK_TESTS = tuple(test for fault in FAULTS if fault.name in QUICK for test in fault.tests)


def marked(fault):
    return pytest.param(fault, id=fault.name, marks=() if fault.name in QUICK else pytest.mark.slow)


def test_the_table_is_up_to_date():
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names)
    assert set(QUICK) <= set(names)
    for fault in FAULTS:
        ast.parse(changed(fault))
        for test in fault.tests:
            assert (TESTS / test.split("::")[0]).exists(), f"{fault.name}: {test} is not there"


@pytest.mark.parametrize(
    "tests", [QUICK_TESTS, pytest.param(ALL_TESTS, marks=pytest.mark.slow)], ids=["quick", "all"]
)
def test_without_a_fault_they_pass(tests, tmp_path):
    outcome = run_tests(tmp_path, tests)
    assert outcome.code == 0, outcome.output


@pytest.mark.parametrize("fault", [marked(fault) for fault in FAULTS])
def test_caught(fault, tmp_path):
    outcome = run_tests(tmp_path, fault.tests, fault)
    assert outcome.code != 0, f"survives {', '.join(fault.tests)}"
    ran = outcome.code == 1 and len(outcome.failed) == 1 and not outcome.errors
    assert ran, f"no test failed, something else did:\n{outcome.output}"
    for test, message in outcome.failed.items():
        assert message.startswith("AssertionError"), f"{test} crashed: {message}"
