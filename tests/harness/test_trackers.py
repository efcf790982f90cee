"""The trackers that people have: each gets the configuration and the metrics of every epoch."""

import importlib

import pytest
from lightning_utilities.core.imports import RequirementCache
from runs import TINY

from cvattn.harness import ConfigError


def test_tensorboard(run, tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    run([*TINY, "logger=tensorboard", "trainer.max_epochs=2"])
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert len(events.Scalars("val/accuracy")) == 2


@pytest.mark.slow  # and of an extra
@pytest.mark.filterwarnings("ignore")  # its own, of the libraries that it uses
def test_mlflow(run, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run([*TINY, "logger=mlflow", "trainer.max_epochs=2"])
    client = mlflow.MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("cvattn").experiment_id])
    assert len(client.get_metric_history(found.info.run_id, "val/accuracy")) == 2
    assert found.data.params["recipe/batch_size"] == "100"


@pytest.mark.slow  # and of an extra
@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(run, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run([*TINY, "logger=wandb", "logger.wandb.offline=true", "trainer.max_epochs=2"])
    (record,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    content = record.read_bytes()
    assert b"val/accuracy" in content
    assert b"label_smoothing" in content
    assert importlib.import_module("wandb").run is None  # closed: a sweep's next run is its own


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_says_how(run, monkeypatch, name):
    module = importlib.import_module(f"pytorch_lightning.loggers.{name}")
    for flag in [f for f in vars(module) if f.startswith("_") and f.endswith("_AVAILABLE")]:
        monkeypatch.setattr(module, flag, RequirementCache(f"{name}>=9999"))
    with pytest.raises(ConfigError, match=rf"logger\.{name}: .*{name}.*pip install"):
        run([*TINY, f"logger={name}"])
