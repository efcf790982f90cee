"""A recipe's contract: read from its file, rerun by a real training, judged both ways."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from rich.console import Console
from test_main import fails

from cvattn.cli import main, verify

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from contract import contract, prediction_interval  # noqa: E402

COMMAND = (
    "python train.py model=sagan data=digits model.widths=[4,8,5] trainer.precision=32-true "
    "trainer.accelerator=cpu trainer.limit_train_batches=3 trainer.max_epochs=1"
)
COMMON = {"data": "digits", "test_accuracy_views": "", "pflop": "2.5e-06", "minutes": "0.02"}
COMMON |= {"cores": "2", "cpu": "Xeon", "precision": "32-true", "commit": "1234567"}
ROWS = [
    {"command": f"{COMMAND} seed={seed}", "seed": seed, "test_accuracy": accuracy} | COMMON
    for seed, accuracy in (("0", "0.11"), ("1", "0.09"), ("2", "0.13"))
]


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A repository of its own, whose sagan recipe promises what ROWS say."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    shutil.copy(ROOT / "train.py", tmp_path)
    monkeypatch.setattr(verify, "_ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    write(tmp_path, contract(ROWS))
    return tmp_path


def write(root: Path, lines: list[str]) -> None:
    path = root / "conf" / "recipe" / "sagan.yaml"
    values = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    path.write_text("\n".join(["# A recipe.", "# contracts:", *lines, *values]) + "\n")


def test_the_interval_is_that_of_a_single_run():
    # Mean 11, standard deviation 2, of 3: 4.303 * 2 * sqrt(4 / 3) = 9.936.
    low, high = prediction_interval([11.0, 9.0, 13.0])
    assert (low, high) == (pytest.approx(1.064, abs=1e-3), pytest.approx(20.936, abs=1e-3))


def test_a_loss_is_no_percentage(checkout, capsys):
    rows = [row | {"test_accuracy": "", "test_loss": row["test_accuracy"]} for row in ROWS]
    write(checkout, contract(rows))
    (found,) = verify.contracts(checkout / "conf/recipe/sagan.yaml").values()
    assert (found.mean, found.metric) == (0.11, "loss")
    assert found.expect == (pytest.approx(0.0106), pytest.approx(0.2094))
    summary = {
        "test": {"loss": 0.2},
        "pflop": 2.5e-06,
        "data": {"label": "digits"},
        "machine": {"cores": 2, "gpu": None, "processor": "Xeon"},
        "minutes": 0.02,
        "commit": "1234567",
    }
    console = Console(width=200)
    assert verify._judge(found, summary, console) == 0
    assert verify._judge(found, summary | {"test": {"loss": 0.3}}, console) == 1
    assert "0.1100; 95 %: 0.0106 to 0.2094" in capsys.readouterr().out


def test_what_is_written_can_be_read(checkout):
    (found,) = verify.contracts(checkout / "conf/recipe/sagan.yaml").values()
    assert found.command == COMMAND
    assert found.seeds == (0, 1, 2)
    assert found.expect == (pytest.approx(1.06), pytest.approx(20.94))
    assert (found.mean, found.metric, found.commit) == (11.0, "accuracy", "1234567")
    assert verify.contracts(checkout / "conf/recipe/vit.yaml").keys() <= {"cifar10", "digits"}


def test_mistakes_are_named(checkout, capsys):
    assert "expected recipe=NAME" in fails(capsys, "verify", "data=digits")
    assert "did you mean recipe?" in fails(capsys, "verify", "recip=sagan")
    assert "recipe=sagn; did you mean sagan" in fails(capsys, "verify", "recipe=sagn")
    text = fails(capsys, "verify", "recipe=sagan", "data=cifar10")
    assert "no contract for data=cifar10; there are: digits" in text
    assert "seed=x: expected" in fails(capsys, "verify", "recipe=sagan", "seed=x")
    copy = [line.replace("data: digits", "data: digits (JPEG copy)") for line in contract(ROWS)]
    write(checkout, copy)
    text = fails(capsys, "verify", "recipe=sagan")
    assert "of digits (JPEG copy), and here is digits: other pixels" in text
    assert "CVATTN_DATA=data_jpeg" in text
    write(checkout, ["#   digits: {mean: 3.0}"])
    assert "the contract of digits has ['mean'], expected" in fails(
        capsys, "verify", "recipe=sagan"
    )
    (checkout / "train.py").unlink()
    assert "clone it" in fails(capsys, "verify", "recipe=sagan")


@pytest.mark.slow
def test_a_run_lands_inside_or_not_or_is_not_the_recipe(checkout, capfd, monkeypatch):
    monkeypatch.setenv("CVATTN_OFFLINE", "1")
    assert main(["verify", "recipe=sagan"]) == 1
    assert "The cost differs" in capfd.readouterr().out
    (summary,) = checkout.glob("outputs/verify_sagan_digits_seed3_*/summary.json")
    cost = json.loads(summary.read_text())["pflop"]
    for expect, code in (("[0.0, 100.0]", 0), ("[99.0, 100.0]", 1)):
        lines = [line for line in contract(ROWS) if "expect" not in line and "pflop" not in line]
        write(checkout, [*lines, f"#     expect: {expect}", f"#     pflop: {cost}"])
        assert main(["verify", "recipe=sagan", "seed=0"]) == code
        assert ("OUTSIDE" in capfd.readouterr().out) == bool(code)
