"""The harness inside the test process, with the repository's own conf/."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from killing import Runs, draw_images, log, outcome, small_run
from omegaconf import DictConfig, open_dict
from runs import CONF

from cvattn.harness import fit
from cvattn.harness.config.decisions import register_resolvers


@pytest.fixture
def composed(tmp_path: Path) -> Iterator[Callable[[Sequence[str]], DictConfig]]:
    """``composed(overrides)``: the configuration as ``train.py`` gets it, run_dir in tmp_path."""

    def make(overrides: Sequence[str]) -> DictConfig:
        register_resolvers()
        GlobalHydra.instance().clear()
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            cfg = compose("config", overrides=list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        cfg = cfg.copy()
        with open_dict(cfg):
            del cfg["hydra"]
        cfg.run_dir = str(tmp_path / "run")
        return cfg

    yield make
    HydraConfig.instance().cfg = None


@pytest.fixture
def run(composed) -> Callable[[Sequence[str]], float]:
    """``run(overrides)``: train as the overrides say; returns what ``fit`` returns."""
    return lambda overrides: fit(composed(overrides))


@pytest.fixture(scope="module")
def runs():
    """Starts runs in processes of their own."""
    started = Runs()
    yield started
    started.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with images, in which runs are started."""
    place = tmp_path_factory.mktemp("stopped")
    draw_images(place / "images")
    return place


@pytest.fixture(scope="module")
def arguments(place):
    """Of a small run with all that has a state."""
    return small_run(place / "images")


@pytest.fixture(scope="module")
def whole(runs, place, arguments):
    """What that run leaves if nothing stops it."""
    assert runs.run([*arguments, "hydra.run.dir=whole"], place) == 0, log(place)
    return outcome(place / "whole")
