"""The YAML files list exactly what the data modules take."""

import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import cvattn.data

CONF = Path(__file__).parents[2] / "conf" / "data"


def test_cifar_100_is_configured_as_cifar_10():
    ours = OmegaConf.load(CONF / "cifar100.yaml")
    assert ours == {"defaults": ["cifar10", "_self_"], "_target_": "cvattn.data.CIFAR100Data"}
    both = (cvattn.data.CIFAR10Data, cvattn.data.CIFAR100Data)
    assert inspect.signature(both[0]) == inspect.signature(both[1])


@pytest.mark.parametrize(
    "name",
    [
        *("cifar10", "digit_scenes", "digits", "fashion_mnist", "folder", "hf", "labels_csv"),
        *("masks_folder", "webdataset"),
    ],
)
def test_every_tunable_is_listed_and_can_be_built(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CVATTN_DATA", str(tmp_path))
    root = OmegaConf.create({"seed": 3, "recipe": {"batch_size": 96}})
    root.data = OmegaConf.load(CONF / f"{name}.yaml")
    values = OmegaConf.to_container(root.data, resolve=True)
    target = getattr(cvattn.data, values.pop("_target_").removeprefix("cvattn.data."))
    signature = inspect.signature(target)
    assert set(values) == set(signature.parameters)
    module = target(**values)
    assert (module.batch_size, module.seed) == (96, 3)
    for key, value in values.items():
        default = signature.parameters[key].default
        if key not in ("root", "batch_size", "seed") and value is not None:
            value = tuple(value) if isinstance(default, tuple) else value
            assert value == default, f"{key}: the YAML and the code differ"
