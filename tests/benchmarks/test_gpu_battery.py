"""``benchmarks/gpu.py`` on a CPU: its sections run, it judges as it says, and faults fail it."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu  # noqa: E402
import gpu_edges  # noqa: E402
from gpu_checks import Check, Finding, Place, Yardstick  # noqa: E402

from cvattn.core.attention import attend, tile_weights, tiled, torch_kernel  # noqa: E402

SMALL = Place(torch.device("cpu"), True)


def rows_of(section, names=None):
    checks = gpu.load_section(section)(SMALL)
    if names is not None:
        checks = [check for check in checks if check.name.startswith(names)]
    return [row for _, row in gpu.run_checks(section, checks, SMALL, 0, 60.0)]


def failed(rows):
    return [gpu._words(row) for row in rows if row["ok"] == "no"]


EDGES = ("rows that", "a bias", "nothing", "rows at")
MODES = ("scores", "a hidden", "second", "dropout", "autocast")


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ("kernels", "kernel: e"),
        ("equality", None),
        ("edges", EDGES),
        ("modes", MODES),
        ("speed", "speed: map"),
    ],
)
def test_a_section_meets_its_bounds(section, names):
    rows = rows_of(section, names)
    assert not failed(rows)
    assert sum(row["ok"] == "yes" for row in rows) >= 3
    assert {row["section"] for row in rows} == {section}


def test_a_route_that_is_wrong_fails_the_battery(monkeypatch, tmp_path, capsys):
    right = attend.tiled_attention
    wrong = lambda *given, **terms: right(*given, **terms) * (1 + 2**-16)  # noqa: E731
    monkeypatch.setattr(attend, "tiled_attention", wrong)
    output = tmp_path / "rows.csv"
    words = ["gpu.py", "--small", "--only", "equality", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    assert gpu.main() == 1
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    bad = {(row["route"], row["dtype"]) for row in rows if row["ok"] == "no"}
    assert bad == {("tiled", "float32")}  # in bfloat16 it is less than a rounding
    assert "FAILED equality, route: plain, float32, tiled: off by" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", words)
    assert gpu.main() == 0


def test_a_kernel_that_stores_all_scores_is_noticed():
    with sdpa_kernel(SDPBackend.MATH):
        rows = rows_of("kernels", "kernel: equal")
    fused = [row for row in rows if row["route"] == "fused"]
    assert fused
    assert all(row["ok"] == "no" and row["kernel"] == "math" for row in fused)


def test_a_backward_pass_that_drops_something_else_is_noticed(monkeypatch):
    class Anew(tile_weights.TileDropout):
        def kept(self, tile, weights):
            self.seed = None if self.seed is None else self.seed + int(torch.randint(99, ()))
            return super().kept(tile, weights)

    monkeypatch.setattr(tiled, "TileDropout", Anew)
    rows = rows_of("modes", "dropout")
    assert {row["route"] for row in rows if row["ok"] == "no"} == {"tiled"}


def test_a_row_that_sees_nothing_must_be_exactly_0(monkeypatch):
    right = torch_kernel.kernel_attention
    slightly = lambda *given, **terms: right(*given, **terms) + 1e-9  # noqa: E731
    monkeypatch.setattr(attend, "kernel_attention", slightly)
    rows = rows_of("edges", "rows that see nothing")
    assert any(row["note"] == "a row that sees nothing is not 0" for row in rows)


def test_the_rest_goes_on_after_a_check_that_raises():
    def bad(place):
        yield Finding("first", ok=True)
        raise RuntimeError("no such kernel\nand more")

    checks = [Check("bad", bad), Check("good", lambda place: [Finding("good", ok=True)])]
    rows = [row for _, row in gpu.run_checks("edges", checks, SMALL, 0, 60.0)]
    assert [(row["case"], row["ok"]) for row in rows] == [
        ("first", "yes"),
        ("bad", "no"),
        ("good", "yes"),
    ]
    assert rows[1]["note"] == "RuntimeError: no such kernel"
    assert "FAILED edges, bad (RuntimeError: no such kernel)" in gpu.summary(rows)


def test_a_section_that_cannot_be_imported_fails_alone(monkeypatch):
    def broken(section):
        raise ModuleNotFoundError("No module named 'pytorch_lightning'")

    monkeypatch.setattr(gpu, "load_section", broken)
    (row,) = gpu._section("training", SMALL, 60.0, gpu._in_this_process)
    assert row["ok"] == "no"
    assert "pytorch_lightning" in row["note"]


def test_what_there_is_no_time_for_is_said(capsys):
    checks = [Check(name, lambda place: [Finding("one", ok=True)]) for name in "ab"]
    ((index, row),) = gpu.run_checks("edges", checks, SMALL, 0, -1.0)
    assert (index, row["ok"]) == (0, "")
    assert "not run: edges, a (from here on (2 checks) there was no time)" in gpu.summary([row])
    (row,) = gpu._section("speed", SMALL, 0.0, gpu._in_this_process)
    assert row["note"] == "from check 1 on there was no time"


def test_near_is_twice_the_reference_s_own_error_or_a_few_eps():
    eps = torch.finfo(torch.float32).eps
    exact = torch.tensor([4.0, -1.0, 0.25], dtype=torch.float64)
    own = exact + torch.tensor([0.0, 0.0, 10 * eps])
    calls = []

    def run(k):
        calls.append(k)
        return [own], [exact]

    def judged(*steps):
        actual = exact + torch.tensor(steps, dtype=torch.float64) * eps
        return Yardstick(run, torch.float32).judge([actual])

    assert judged(30.0, 0.0, 0.0)["ok"]  # 2 x 10 eps, and 4 eps of the largest value, 4
    assert calls == [0]
    assert not judged(0.0, 40.0, 0.0)["ok"]
    assert calls[1:] == [0, *range(1, 8)]  # neighbours, before it is called a fault
    assert not judged(float("nan"), 0.0, 0.0)["ok"]
    # A part that is 0 but for rounding is measured by the others.
    lone = Yardstick(lambda k: ([exact, 1e-17 * exact], [exact, 0 * exact]), torch.float32)
    assert lone.judge([exact, 3 * eps * exact.sign()])["ok"]
    assert not lone.judge([exact, 30 * eps * exact.sign()])["ok"]
    with pytest.raises(ValueError, match="shape"):
        lone.judge([exact[:2], exact])


def test_devices_are_named_for_files(monkeypatch):
    assert gpu.device_slug("NVIDIA H200") == "nvidia-h200"
    assert gpu.device_slug("NVIDIA A100-SXM4-80GB") == "nvidia-a100-sxm4-80gb"
    for name, answer in {
        "get_device_capability": (9, 0),
        "get_device_name": "NVIDIA H200",
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, answer=answer: answer)
    facts = gpu.device_facts(Place(torch.device("cuda"), False))
    assert facts["device"] == "NVIDIA H200"
    assert facts["capability"] == "9.0"
    assert facts.keys() < set(gpu.COLUMNS)


def test_routes_are_asked_for_where_they_can_compute_the_call():
    given = gpu_edges.make_call(bias="heads").to("cpu", torch.float32)
    assert gpu_edges.routes_for(given) == ["tiled", "direct"]


# What is not found is as if it were not installed. torchmetrics, and Lightning for rich, ask its
# metadata instead: the one is imported before, the other has it.
WITHOUT = """
import runpy, sys
from importlib.machinery import PathFinder
import {first}

found = PathFinder.find_spec

def find(name, *more):
    return None if name.partition(".")[0] in {missing} else found(name, *more)

PathFinder.find_spec = staticmethod(find)
sys.argv = {words}
sys.path.insert(0, {folder!r})
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_the_whole_needs_torch_and_lightning_alone(training, tmp_path):
    sections = ["training"] if training else [name for name in gpu.SECTIONS if name != "training"]
    missing = {"hydra", "omegaconf", "timm", "diffusers", "monai", "transformers"}
    missing |= {"matplotlib", "torchvision", "pyarrow"}
    if not training:
        missing |= {"pytorch_lightning", "sklearn", "rich"}
    output = tmp_path / "rows.csv"
    script = str(BENCHMARKS / "gpu.py")
    words = [script, "--small", "--output", str(output), "--only", *sections]
    first = "torchmetrics" if training else "os"
    given = {
        "first": first,
        "missing": missing,
        "words": words,
        "folder": str(BENCHMARKS),
        "script": script,
    }
    code = WITHOUT.format(**given)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["section"] for row in rows} == set(sections)
    assert all(row["torch"] and row["commit"] and row["date"] for row in rows)


FAKE = """
import os, sys, time
from gpu_checks import Check, Finding

def dies(place):
    yield Finding("seen before", ok=True)
    os._exit(9)

def hangs(place):
    time.sleep(300)

def checks(place):
    good = lambda place: [Finding("good", ok=True)]
    return [Check("a", good), Check("dies", dies), Check("b", good), Check("hangs", hangs)]
"""


@pytest.mark.slow
def test_a_process_that_dies_or_hangs_costs_one_check(tmp_path, monkeypatch):
    copied = tmp_path / "benchmarks"
    shutil.copytree(BENCHMARKS, copied, ignore=shutil.ignore_patterns("__pycache__"))
    (copied / "gpu_speed.py").write_text(FAKE)
    (tmp_path / "cvattn").symlink_to(ROOT / "cvattn")
    monkeypatch.setattr(gpu, "__file__", str(copied / "gpu.py"))
    monkeypatch.setattr(gpu, "PATIENCE", 5)
    rows = list(gpu._section("speed", SMALL, 30.0, gpu._in_a_process))
    assert [(row["case"], row["ok"]) for row in rows] == [
        ("good", "yes"),
        ("seen before", "yes"),
        ("dies", "no"),
        ("good", "yes"),
        ("hangs", "no"),
    ]
    assert "ended with 9" in rows[2]["note"]
    assert "stopped" in rows[4]["note"]
