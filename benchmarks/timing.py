"""Times one case in a process of its own: all methods, in turn, for several rounds.

    python benchmarks/timing.py CASE

Prints one line of JSON: milliseconds of every round by method, and what was not run.
"""

import argparse
import gc
import json
import math
import random
import time
from collections.abc import Callable

import torch
from cases import FEWEST, MOST, Case, find_case
from machine import too_large
from methods import SEED, TOLERANCE, build_method, distance, exact_step, make_data, step


def time_case(case: Case, *, rounds: int | None, seconds: float, sample: float) -> dict:
    """Milliseconds of every round by method, after checking that the methods agree.

    Args:
        case: what to run.
        rounds: exactly this many; None = at least FEWEST, then until ``seconds`` have passed.
        seconds: how long to go on, within FEWEST and MOST rounds.
        sample: seconds that one sample lasts at least; short steps are repeated within it.
    """
    refused = {name: too_large(case, name) for name in case.methods}
    names = [name for name in case.methods if not refused[name]]
    steps, firsts, errors = _agreeing_steps(case, names)
    repeats = {name: _repeats(steps[name], firsts[name], sample) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    shuffle = random.Random(SEED).shuffle
    gc.collect()
    gc.disable()
    start = time.perf_counter()
    while not _enough(len(times[names[0]]), rounds, time.perf_counter() - start, seconds):
        # A new order each round: what one method leaves behind (caches, clock speed, the state of
        # the allocator) does not always fall on the same other one.
        order = names.copy()
        shuffle(order)
        for name in order:
            times[name].append(_seconds(steps[name], repeats[name]) * 1e3)
    return {
        "times": times,
        "notes": {name: note for name, note in refused.items() if note},
        "threads": torch.get_num_threads(),
        "errors": errors,
    }


def _agreeing_steps(
    case: Case, names: list[str]
) -> tuple[dict[str, Callable[[], object]], dict[str, float], dict[str, float]]:
    """One step of each method to call, the seconds of the first one, and errors in bfloat16.

    Raises RuntimeError unless all compute what the subject computes.
    """
    steps: dict[str, Callable[[], object]] = {}
    firsts, errors = {}, {}
    expected = None
    exact = exact_step(case) if case.dtype == "bfloat16" else None
    for name in names:
        method = build_method(case, name)
        data = make_data(case, method.layout)
        start = time.perf_counter()
        result = step(case, method, data)
        firsts[name] = time.perf_counter() - start
        if expected is None:
            expected = result
        apart = distance(case, data, expected, result)
        if not apart <= TOLERANCE[case.dtype]:  # NaN is no agreement either
            raise RuntimeError(
                f"{case.name}: {case.subject} and {name} differ by {apart:.2g}, at most "
                f"{TOLERANCE[case.dtype]:.2g} was expected"
            )
        if exact is not None:
            errors[name] = distance(case, data, result, exact)
        steps[name] = lambda method=method, data=data: step(case, method, data)
    return steps, firsts, errors


def _repeats(run: Callable[[], object], first: float, sample: float) -> int:
    """How often a step fits into a sample; the first one also loaded kernels, so is no measure."""
    if first > 20 * sample:
        return 1
    return max(1, math.ceil(sample / _seconds(run, 1)))


def _seconds(run: Callable[[], object], repeats: int) -> float:
    """Mean seconds of a step over ``repeats`` of them."""
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def _enough(done: int, rounds: int | None, elapsed: float, seconds: float) -> bool:
    if rounds is not None:
        return done >= rounds
    return done >= MOST or (done >= FEWEST and elapsed >= seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, default=45.0)
    parser.add_argument("--sample", type=float, default=0.05)
    args = parser.parse_args()
    case = find_case(args.case)
    print(json.dumps(time_case(case, rounds=args.rounds, seconds=args.seconds, sample=args.sample)))


if __name__ == "__main__":
    main()
