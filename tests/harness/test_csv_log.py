from cvattn.harness import CSVLog
from cvattn.harness.reporting.csv_log import read_metrics


def test_one_row_an_epoch_with_every_column(tmp_path):
    log = CSVLog(str(tmp_path / "metrics.csv"))
    log.log_metrics({"epoch": 0, "val/loss": 2.5}, step=3)
    log.log_metrics({"epoch": 0, "train/loss": 1.5}, step=3)
    log.log_metrics({"epoch": 1, "val/loss": 2.0, "gamma/a": 0.25}, step=7)
    log.log_metrics({"epoch": 1, "test/loss": 9.0}, step=7)
    log.log_metrics({"lr": 1.0}, step=7)
    log.save()
    assert read_metrics(log.path) == {
        0: {"epoch": 0, "step": 3.0, "val/loss": 2.5, "train/loss": 1.5},
        1: {"epoch": 1, "step": 7.0, "val/loss": 2.0, "gamma/a": 0.25},
    }


def test_trap_30_an_existing_file_is_continued(tmp_path):
    path = tmp_path / "metrics.csv"
    first = CSVLog(str(path))
    for epoch in range(3):
        first.log_metrics({"epoch": epoch, "val/loss": epoch / 8}, step=epoch)
    first.finalize("success")
    second = CSVLog(str(path))
    second.forget_from(2)
    second.log_metrics({"epoch": 2, "val/loss": 7.0}, step=2)
    second.finalize("success")
    losses = [row["val/loss"] for row in read_metrics(path).values()]
    assert losses == [0.0, 0.125, 7.0]
