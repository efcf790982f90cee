"""The benchmark: its peers compute what ours does, its statistics hold, its command works.

The modules of ``benchmarks/`` are scripts beside each other, not a package, so their folder goes on
the path.
"""

import csv
import dataclasses
import inspect
import random
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from oracles import assert_near

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import cases  # noqa: E402
import machine  # noqa: E402
import methods  # noqa: E402
import rows  # noqa: E402
from paired import fitted_exponent, paired_difference, paired_ratio, quartiles  # noqa: E402

MASKS_IN_TIMM = "is_causal" in inspect.signature(timm.layers.Attention.forward).parameters
NEEDS_MASKS = pytest.mark.skipif(not MASKS_IN_TIMM, reason="this timm's attention is never causal")
QUICK = {case.kind: case for case in cases.QUICK_CASES}
SHAPES = {"map": (2, 17, 5, 7), "pooled": (2, 17, 6, 10), "tokens": (3, 11, 26)}


def small_case(kind: str) -> cases.Case:
    return dataclasses.replace(QUICK[kind], shape=SHAPES[kind], dtype="float32")


@pytest.mark.parametrize("kind", ["map", "pooled", pytest.param("tokens", marks=NEEDS_MASKS)])
def test_every_method_agrees_with_ours(kind: str) -> None:
    case = dataclasses.replace(small_case(kind), dtype="float64")
    mine = methods.build_method(case, "ours")
    ours = methods.step(case, mine, methods.make_data(case, mine.layout))
    for name in case.methods[1:]:
        method = methods.build_method(case, name)
        data = methods.make_data(case, method.layout)
        theirs = methods.step(case, method, data)
        assert_near(theirs[0], ours[0], f"{name}, output")
        assert_near(theirs[1], ours[1], f"{name}, gradient of x")
        assert methods.distance(case, data, ours, theirs) < methods.TOLERANCE["float32"]
        if kind != "tokens":  # there the peers pack three weights into one
            expected = dict(zip(dict(mine.module.named_parameters()), ours[2:], strict=True))
            actual = dict(zip(dict(method.module.named_parameters()), theirs[2:], strict=True))
            assert actual.keys() == expected.keys()
            # The softmax does not see the key's bias: its gradient is 0 but for rounding.
            for parameter in actual.keys() - {"key.bias"}:
                assert_near(actual[parameter], expected[parameter], f"{name}, {parameter}")


@pytest.mark.parametrize("mask", ["padding", pytest.param("causal", marks=NEEDS_MASKS)])
def test_masked_methods_agree_and_the_mask_hides(mask: str) -> None:
    case = next(each for each in cases.QUICK_CASES if each.mask == mask)
    case = dataclasses.replace(case, shape=SHAPES["tokens"], dtype="float64")

    def run(case: cases.Case, name: str) -> tuple[torch.Tensor, ...]:
        method = methods.build_method(case, name)
        return methods.step(case, method, methods.make_data(case, method.layout))

    ours = run(case, "ours")
    for name in case.methods[1:]:
        for mine, theirs in zip(ours[:2], run(case, name)[:2], strict=True):
            assert_near(theirs, mine, what=name)
    bare = run(dataclasses.replace(case, mask=""), "ours")
    assert (bare[0] - ours[0]).norm() > 0.01 * ours[0].norm()


def test_the_error_of_bfloat16_is_against_float64() -> None:
    case = dataclasses.replace(small_case("map"), dtype="bfloat16")
    exact = methods.exact_step(case)
    assert exact[0].dtype == torch.float64
    method = methods.build_method(case, "ours")
    data = methods.make_data(case, method.layout)
    error = methods.distance(case, data, methods.step(case, method, data), exact)
    assert torch.finfo(torch.bfloat16).eps / 16 < error < methods.TOLERANCE["bfloat16"]
    assert made_rows(case, 0.5, 1.0)[0]["error"] == "0.00325"


def test_input_layouts_differ_and_gamma_is_not_0() -> None:
    case = small_case("map")
    last = methods.build_method(case, "common channels_last")
    assert last.module.gamma.item() != 0.0
    data = methods.make_data(case, last.layout)
    assert data.x.is_contiguous(memory_format=torch.channels_last)
    first = methods.make_data(case, torch.contiguous_format)
    assert first.x.is_contiguous()
    assert torch.equal(first.x, data.x)


@pytest.mark.parametrize("kind", ["map", "tokens"])
def test_a_peer_that_computes_something_else_is_noticed(kind: str) -> None:
    case = small_case(kind)
    method = methods.build_method(case, "ours")
    data = methods.make_data(case, method.layout)
    right = methods.step(case, method, data)
    weight = method.module.query.weight if kind == "map" else method.module.q_proj.weight
    with torch.no_grad():
        weight.mul_(1.5)  # as a factor on the scores, the commonest mistake
    wrong = methods.step(case, method, data)
    assert methods.distance(case, data, right, wrong) > methods.TOLERANCE["bfloat16"]


def noisy_times(ratio: float, noise: float) -> tuple[list[float], list[float]]:
    """Two methods over 15 rounds on a machine that slows down by half towards the end."""
    draw = random.Random(5)
    other = [10.0 + 5.0 * (i / 14) for i in range(15)]
    return [ratio * t * (1 + noise * draw.uniform(-1, 1)) for t in other], other


def test_paired_ratio_finds_the_ratio_through_drift() -> None:
    exact = paired_ratio(*noisy_times(0.5, 0.0))
    assert exact == pytest.approx((0.5, 0.5, 0.5))
    near, wide = paired_ratio(*noisy_times(0.5, 0.02)), paired_ratio(*noisy_times(0.5, 0.2))
    for found in (near, wide):
        assert found.low < 0.5 < found.high
        assert found.low <= found.median <= found.high
    assert wide.high - wide.low > 3 * (near.high - near.low)
    assert paired_ratio(*noisy_times(0.5, 0.2)) == wide


def test_paired_difference_is_of_each_round() -> None:
    drift = [1.0, 5.0, 2.0, 9.0, 4.0, 3.0, 7.0]
    found = paired_difference([t + 0.25 for t in drift], drift)
    assert found == pytest.approx((0.25, 0.25, 0.25))


def test_paired_ratio_takes_the_order_statistics_of_the_sign_test() -> None:
    """Known pairs: at 6 rounds 1st and last, at 9 the 2nd, at 12 the 3rd, at 15 the 4th."""
    for n, k in ((3, 1), (6, 1), (8, 1), (9, 2), (12, 3), (15, 4)):
        ratios = [float(i) for i in range(1, n + 1)]
        assert paired_ratio(ratios, [1.0] * n)[1:] == (k, n + 1 - k)
    with pytest.raises(ValueError, match="2 and 3 rounds"):
        paired_ratio([1.0, 2.0], [1.0, 2.0, 3.0])


def test_quartiles_and_exponent() -> None:
    assert quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == (2.0, 3.0, 4.0)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)
    sizes = [1000.0, 4000.0, 64000.0]
    assert fitted_exponent(sizes, [3e-4 * n**1.5 for n in sizes]) == pytest.approx(1.5)


def made_rows(case: cases.Case, factor: float, peak: float) -> list[rows.Row]:
    """Rows of a case in which ours takes ``factor`` of every other method's time."""
    times = {n: [factor if n == case.subject else 1.0] * 9 for n in case.methods}
    peaks = {
        n: {"peak_mib": peak if n == case.subject else 100.0, "total_mib": 300.0}
        for n in case.methods
    }
    timing = {"times": times, "notes": {}, "threads": 2, "errors": {case.subject: 0.00325}}
    return rows.make_rows(case, timing, peaks, {"torch": "1", "commit": "a", "cpu": "c"})


def test_targets_are_met_up_to_the_allowance_and_no_further() -> None:
    case = cases.find_case("map-100x100-float32-forward")
    assert case.time_targets == {"best": 0.62}
    verdicts = [made_rows(case, factor, 5.0)[0]["ratio_met"] for factor in (0.5, 0.64, 0.66)]
    assert verdicts == ["yes", "yes", "no"]
    verdicts = [made_rows(case, 0.5, peak)[0]["memory_met"] for peak in (5.0, 6.0)]
    assert verdicts == ["yes", "no"]


def test_a_case_replaces_its_own_rows_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "attention.csv"
    first, second = QUICK["map"], QUICK["tokens"]
    rows.put_rows(path, made_rows(second, 0.5, 1.0))
    rows.put_rows(path, made_rows(first, 0.5, 1.0))
    rows.put_rows(path, made_rows(second, 0.25, 1.0))
    found = rows.read_rows(path)
    assert [row["case"] for row in found] == [first.name] * 6 + [second.name] * 4
    assert {row["ratio"] for row in found if row["case"] == second.name} >= {"0.25"}
    facts = {"torch": "1", "commit": "a", "cpu": "c"}
    assert rows.is_measured(found, first, facts, rounds=9)
    assert not rows.is_measured(found, first, facts, rounds=10)
    assert not rows.is_measured(found, first, facts | {"commit": "b"}, rounds=9)
    assert not rows.is_measured(found[1:], first, facts, rounds=9)
    assert [file.name for file in path.parent.iterdir()] == ["attention.csv"]


def test_names_of_cases_and_machines() -> None:
    names = [case.name for case in cases.CASES + cases.QUICK_CASES]
    assert len(set(names)) == len(names)
    slug = machine.slug("Some(R) Maker(TM) X-7 Processor @ 2.50GHz")
    assert slug == f"some-maker-x-7-2.50ghz-{machine.usable_cores()}cores"


def test_what_cannot_fit_is_not_run() -> None:
    huge = dataclasses.replace(
        cases.find_case("scan-map-256x256-float32"), shape=(1, 8, 4096, 4096)
    )
    assert "not run: needs about" in machine.too_large(huge, "common")
    assert machine.too_large(huge, "ours") == ""


@pytest.mark.slow
def test_command_measures_and_continues(tmp_path: Path) -> None:
    output = tmp_path / "small.csv"
    command = [
        *(sys.executable, str(BENCHMARKS / "attention.py"), "--quick", "--rounds", "2"),
        *("--only", "quick-class_row*", "--output", str(output)),
    ]
    first = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    with output.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["method"] for row in found] == ["ours with class row", "ours"]
    for row in found:
        assert row["rounds"] == "2"
        assert float(row["median_ms"]) > 0
        assert float(row["total_mib"]) > float(row["peak_mib"])
        assert 0 < float(row["ratio_low"]) <= float(row["ratio"]) <= float(row["ratio_high"])
        assert torch.__version__.startswith(row["torch"])
    written = output.read_bytes()
    second = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "measured already: 1 of 1" in second.stdout
    assert output.read_bytes() == written


def test_picture_of_a_scan(tmp_path: Path) -> None:
    from picture import draw

    scan = [case for case in cases.CASES if case.name.startswith("scan-map-")]
    made = [row for case in scan[:3] for row in made_rows(case, 0.5, 10.0)]
    assert not draw(made[:3], tmp_path / "one.png")
    assert draw(made, tmp_path / "scan.png")
    assert (tmp_path / "scan.png").stat().st_size > 10_000
