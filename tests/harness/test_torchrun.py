"""torchrun, really: two processes that agree, or that are told the right command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT

# Everything that a process could decide for itself is left open.
OPEN = [
    *("model=sagan", "model.widths=[4,8,5]", "trainer.accelerator=cpu", "seed=null"),
    *("trainer.limit_train_batches=2", "trainer.max_epochs=1"),
]
TWO = ["trainer=ddp", "trainer.devices=2"]


def torchrun(*arguments: str, cwd: Path, code: int = 0, door: Path = ROOT / "train.py") -> str:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"),
            *(str(door), *arguments),
        ],
        cwd=cwd,
        env={
            **os.environ,
            "CVATTN_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "CVATTN_DATA": str(cwd / "none"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


@pytest.mark.slow
def test_two_processes_are_one_run_with_one_folder_seed_and_precision(tmp_path):
    # Each process says what it has settled on.
    code = """
import json, os, sys
import cvattn.harness
module = sys.modules["cvattn.harness.fit"]
real = module.assemble
def told(cfg):
    run = real(cfg)
    what = [run.cfg.seed, run.precision.choice, str(run.folder), run.info.name]
    with open(f'{os.environ["RANK"]}.json', "w") as file:
        json.dump(what, file)
    return run
module.assemble = told
"""
    door = tmp_path / "door.py"
    door.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{code}\nimport runpy\n"
        f"sys.argv[0] = {str(ROOT / 'train.py')!r}\n"
        f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
    )
    torchrun(*OPEN, *TWO, cwd=tmp_path, door=door)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    (folder,) = (tmp_path / "outputs").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["processes"] == 2
    assert [summary["seed"], summary["precision"]] == first[:2]
    # And goes on, in one process.
    last = folder / "checkpoints" / "last.ckpt"
    more = ["trainer.devices=1", "trainer.strategy=auto", "trainer.max_epochs=2"]
    subprocess.run(
        [sys.executable, str(ROOT / "train.py"), f"ckpt_path={last}", *more],
        cwd=tmp_path,
        check=True,
        timeout=300,
    )
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["processes"], summary["epochs"]) == (1, 2)
    assert len(list((tmp_path / "outputs").iterdir())) == 1


@pytest.mark.slow
def test_two_processes_that_would_be_two_runs_are_told_the_command(tmp_path):
    output = torchrun(*OPEN, "data=digits", cwd=tmp_path, code=1)
    assert "add trainer=ddp trainer.devices=2 (where" in output
    assert "Traceback (most recent call last):\n  File" not in output.partition("error:")[0]
    assert not (tmp_path / "outputs").exists()
