"""Trains the small networks that come with the package, and writes them.

    python benchmarks/train_bundled.py                 cvattn/bundled/*.safetensors, a few minutes
    python benchmarks/train_bundled.py vit-digits      only that one

They are there to be looked at: `cvattn.load("sagan-digits")`, `cvattn explore vit-digits`. What
each was trained with and what it reached is in its ``.meta``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from cvattn import checkpoint

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "cvattn" / "bundled"
# Narrower than the defaults, for files of about a megabyte. The ViT without its relative bias: with
# it every layer looks around its query, on images as small as these, and there is less to see.
NETWORKS = {
    "sagan-digits": ["model=sagan", "data=digits", "model.widths=[32,96,96]"],
    "vit-digits": [
        *("model=vit", "data=digits"),
        *("model.embed_dim=64", "model.num_heads=4", "model.ffn_dim=128"),
        "model.relative_bias=false",
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NETWORKS)}")
    names = parser.parse_args().names or list(NETWORKS)
    unknown = sorted(set(names) - set(NETWORKS))
    if unknown:
        parser.error(f"no {unknown[0]!r}; there are {', '.join(NETWORKS)}")
    FOLDER.mkdir(exist_ok=True)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            _train(NETWORKS[name], Path(folder))
            size = _write(name, Path(folder))
        print(f"{name}: {size / 1e6:.2f} MB")


def _train(overrides: list[str], folder: Path) -> None:
    command = [sys.executable, "train.py", *overrides, f"run_dir={folder}"]
    subprocess.run(command, cwd=ROOT, check=True)


def _write(name: str, folder: Path) -> int:
    trained = checkpoint.load(folder / "checkpoints" / "last.ckpt")
    ours = checkpoint.read(folder / "checkpoints" / "last.ckpt")["cvattn"]
    summary = json.loads((folder / "summary.json").read_text())
    kept = ("classes", "mean", "std", "image_size", "channels")
    meta = {key: ours["meta"][key] for key in kept} | {
        "config": {"data": ours["meta"]["config"]["data"]},
        "command": " ".join(["python train.py", *NETWORKS[name]]),
        "commit": summary["commit"],
        "test_accuracy": summary["test"]["accuracy"],
    }
    path = FOLDER / f"{name}.safetensors"
    checkpoint.save(path, trained, args=ours["args"], meta=meta)
    return path.stat().st_size


if __name__ == "__main__":
    main()
