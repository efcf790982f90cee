"""Times the subject of a case whenever it is its turn: a worker of checkouts.py.

    python benchmarks/turns.py CASE CODE

CODE is the folder whose cvattn is to be measured; PYTHONPATH has to say so too. Prints "ready",
and for each line on its standard input the milliseconds of a step.
"""

import argparse
import gc
import sys
import time
from pathlib import Path

import torch
from cases import find_case
from methods import build_method, make_data, step

import cvattn

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case")
    parser.add_argument("code", type=Path)
    parser.add_argument("--sample", type=float, default=0.05)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if not Path(cvattn.__file__).resolve().is_relative_to(args.code.resolve()):
        parser.error(f"cvattn comes from {cvattn.__file__}, not from {args.code}")
    if args.threads:
        torch.set_num_threads(args.threads)
    case, clock = find_case(args.case), CLOCKS[args.clock]
    method = build_method(case, case.subject)
    data = make_data(case, method.layout)
    step(case, method, data)
    start = clock()
    step(case, method, data)
    repeats = max(1, int(args.sample / max(clock() - start, 1e-9)))
    gc.collect()
    gc.disable()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = clock()
        for _ in range(repeats):
            step(case, method, data)
        print((clock() - start) / repeats * 1e3, flush=True)


if __name__ == "__main__":
    main()
