"""What is written down of a run: of any task, behind what older files have."""

import json
from pathlib import Path

from cvattn.comparison.jobs import Job
from cvattn.comparison.rows import (
    COLUMNS,
    CURVE_COLUMNS,
    append,
    epochs_of,
    read_rows,
    row_of,
)

RESULTS = Path(__file__).resolve().parents[2] / "results"
# Of a task that nobody knew when this was written.
SUMMARY = {
    "data": {"label": "masks", "unit": "image", "train_on_val": False},
    "test": {"miou": 0.25, "accuracy": 0.5, "loss": None},
    "val": {"miou": 0.125, "accuracy": 0.75},
    "further_tests": {"at night": {"miou": 0.0625}},
    "criterion": {"metric": "val/miou", "mode": "max", "best": 0.5},
    "gamma": {"attention.stage2": 0.5},
    "earlier_commits": ["abc"],
    "commit": None,
    "precision": "32-true",
    "pflop": 0.1,
    "epochs": 2,
    "parameters": 7,
    "macs_per_image": 11,
    "minutes": 1.0,
    "images_per_second": 13.0,
    "machine": {"processor": "Some(R) Processor", "gpu": "H200"},
    "versions": {"torch": "2.10"},
}


def test_every_metric_of_a_task_is_written_down(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss,val/miou\n0,4,1.5,0.25\n")
    job = Job("a", ("model=unet",), 3)
    append(tmp_path / "rows.csv", COLUMNS, [row_of(job, tmp_path)])
    (row,) = read_rows(tmp_path / "rows.csv")
    assert list(row) == [*COLUMNS, "test_miou", "val_miou"]
    assert (row["test_miou"], row["val_miou"], row["val_accuracy"]) == ("0.25", "0.125", "0.75")
    assert (row["criterion"], row["mode"], row["further_tests"]) == (
        *("val/miou", "max", "at night: 0.0625"),
    )
    assert (row["test_loss"], row["val_loss"], row["commit"]) == ("", "", "abc")
    # A block's part is known of classifiers alone.
    assert (row["gamma"], row["val_accuracy_gamma_0"]) == ("0.5000", "")
    append(tmp_path / "curves.csv", CURVE_COLUMNS, epochs_of(job, tmp_path))
    (epoch,) = read_rows(tmp_path / "curves.csv")
    assert list(epoch) == [*CURVE_COLUMNS, "val/miou"]
    assert (epoch["epoch"], epoch["val/miou"], epoch["train/loss"]) == ("1", "0.25000", "1.50000")


def test_rows_of_an_older_file_stay_as_they_are(tmp_path):
    old = RESULTS / "attention_ablation.csv"
    before = read_rows(old)
    (tmp_path / "old.csv").write_bytes(old.read_bytes())
    append(tmp_path / "old.csv", COLUMNS, [{"run": "new", "seed": 5, "test_miou": 0.5}])
    *same, new = read_rows(tmp_path / "old.csv")
    assert [{key: row[key] for key in before[0]} for row in same] == before
    filled = {key: value for key, value in new.items() if value}
    assert filled == {"run": "new", "seed": "5", "test_miou": "0.5"}
