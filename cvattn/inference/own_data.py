"""Which data a network is evaluated on: its own, as its checkpoint tells, or as asked for."""

import dataclasses
import inspect
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import cvattn.data
from cvattn.data import (
    BatchLoader,
    DataInfo,
    ImageDataModule,
    MaskDataModule,
    SourceDataModule,
)
from cvattn.data.images.photographs import PhotoAugmentation
from cvattn.data.info import a_target
from cvattn.inference.classifier import Classifier
from cvattn.inference.errors import InferenceError
from cvattn.inference.image_network import ImageNetwork
from cvattn.inference.segmenter import Segmenter
from cvattn.system import did_you_mean


def _short(name: str) -> str:
    """The name by which ``conf/data`` chooses a class: "FashionMNISTData" -> "fashion_mnist"."""
    if said := getattr(getattr(cvattn.data, name), "data_name", None):
        return said
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.removesuffix("Data")).lower()


# By name, and only these: a checkpoint cannot name other code to run.
MODULES: dict[str, type[ImageDataModule]] = {
    _short(name): cls
    for name in cvattn.data.__all__
    if inspect.isclass(cls := getattr(cvattn.data, name))
    and issubclass(cls, ImageDataModule)
    and cls not in (ImageDataModule, MaskDataModule, SourceDataModule)
}
SPLIT = "val"  # shown to people; the test images are for testing
# The network fixes these where the data module would let them be chosen.
FIXED = ("channels", "image_size", "mean", "std")
# What is done to training images has no part in what follows, and a checkpoint may name code there.
OF_TRAINING = {field.name for field in dataclasses.fields(PhotoAugmentation)}
# And this, where what a mask file holds could be told otherwise.
MASKS = ("classes", "values", "void")


def choose_data(
    network: ImageNetwork, name: str | None = None, given: Mapping[str, Any] | None = None
) -> tuple[ImageDataModule, list[str]]:
    """The data module, checked to be of the network's kind, and notes for people.

    Args:
        network: its ``config["data"]`` is what it was trained on.
        name: of other data, a key of ``MODULES``.
        given: arguments of its data module, such as ``root``.

    Raises:
        InferenceError: unknown names (with near matches), values that do not fit, or data of other
            classes or of another size.
    """
    given = given or {}
    if name is not None and name not in MODULES:
        raise InferenceError(f"data={name}: no such data{did_you_mean(name, MODULES)}")
    own, own_arguments, reason = _own(network.config)
    cls = MODULES[name] if name else own
    if cls is None:
        raise InferenceError(f"{reason}; name the data, data={' or data='.join(MODULES)}")
    name = next(short for short, known in MODULES.items() if known is cls)
    if cls.target != network.target:
        raise InferenceError(
            f"the network gives {a_target(network.target)} for each image, and {name} has "
            f"{a_target(cls.target)}"
        )
    parameters = inspect.signature(cls).parameters
    for key in given:
        if key not in parameters:
            raise InferenceError(f"data={name} has no {key!r}{did_you_mean(key, parameters)}")
        if key in ("mean", "std"):
            raise InferenceError(
                f"data.{key}: pixels are normalised as in training, with the checkpoint's {key}"
            )
    notes = []
    arguments: dict[str, Any] = dict(own_arguments) if cls is own else {}
    dropped = [key for key in arguments if key not in parameters]
    if dropped:
        notes.append(f"data={name} no longer has {', '.join(dropped)}; left out")
    arguments = {key: value for key, value in arguments.items() if key in parameters}
    fixed = (*FIXED, *(MASKS if isinstance(network, Segmenter) else ()))
    arguments |= {key: getattr(network, key) for key in fixed if key in parameters}
    arguments |= given
    if "root" in parameters and "root" not in given:
        required = parameters["root"].default is inspect.Parameter.empty
        notes += _find_root(arguments, name, required=required)
    try:
        data = cls(**arguments)
        info = data.describe()
    except (TypeError, ValueError, OSError) as error:
        raise InferenceError(f"data={name}: {error}") from error
    _check_agreement(network, info)
    return data, notes


def data_here(name: str) -> ImageDataModule:
    """The data of that name, with nothing said: where CVATTN_DATA names it, or in its default."""
    cls = MODULES[name]
    root = inspect.signature(cls).parameters.get("root")
    arguments: dict[str, Any] = {}
    if root is not None:
        _find_root(arguments, name, required=root.default is inspect.Parameter.empty)
    return cls(**arguments)


def loaded(data: ImageDataModule, stage: str = "test") -> DataInfo:
    """Read the data; what is then known of it.

    Raises:
        InferenceError: it is not there, or cannot be read.
    """
    try:
        data.prepare_data()
        data.setup(stage)
    except (ValueError, OSError) as error:
        raise InferenceError(f"data: {error}") from error
    assert data.info is not None
    return data.info


def in_order(network: ImageNetwork, data: ImageDataModule, split: str) -> BatchLoader:
    """The images of a split, normalised as the network was trained, whatever the data would do.

    Raises:
        InferenceError: there are none.
    """
    part = data.split(split)
    if not len(part.images):
        raise InferenceError(f"the data has no {split} images")
    return BatchLoader(
        part.images,
        part.labels,
        batch_size=data.eval_batch_size,
        mean=network.mean,
        std=network.std,
    )


def validation_images(
    network: Classifier | Segmenter, data: ImageDataModule, count: int
) -> tuple[np.ndarray, list[str], list[str] | None]:
    """Pixels, uint8 (count, C, H, W), their names and labels; the same ones every time.

    Images with masks have no labels.

    Raises:
        InferenceError: the data cannot be read.
    """
    loaded(data, "fit")
    _, indices, places = data.example_images(count, split=SPLIT)
    names = [f"{SPLIT} image {place}" for place in places.tolist()]
    if isinstance(network, Segmenter):
        return np.asarray(data.split(SPLIT).images[places]), names, None
    if indices.ndim == 2:
        labels = [
            ", ".join(network.outputs[label] for label in has.nonzero()[:, 0].tolist()) or "nothing"
            for has in indices
        ]
    else:
        labels = [network.outputs[label] for label in indices.tolist()]
    return np.asarray(data.split(SPLIT).images[places]), names, labels


def _own(config: Mapping[str, Any]) -> tuple[type[ImageDataModule] | None, dict[str, Any], str]:
    """Class and arguments that the checkpoint tells, or why there are none."""
    node = config.get("data") if isinstance(config, Mapping) else None
    if not isinstance(node, Mapping):
        return None, {}, "the checkpoint does not say what data it was trained on"
    target = node.get("_target_")
    cls = {f"cvattn.data.{cls.__name__}": cls for cls in MODULES.values()}.get(str(target))
    if cls is None:
        return None, {}, f"the checkpoint was trained on {target}, which is no data of cvattn"
    plain = {str(k): v for k, v in node.items() if not str(k).startswith("_")}
    return cls, {k: v for k, v in plain.items() if k not in OF_TRAINING}, ""


def _find_root(arguments: dict[str, Any], name: str, *, required: bool) -> list[str]:
    """Where the data is, if not said: where it was in training, CVATTN_DATA, or the default."""
    was, here = arguments.get("root"), os.environ.get("CVATTN_DATA")
    if was is not None and Path(was).expanduser().is_dir():
        return []
    # A checkpoint from elsewhere: its path means nothing on this machine.
    arguments.pop("root", None)
    if here:
        arguments["root"] = here
    elif required:
        reason = "" if was is None else f"; in training it was {was}, which is no folder here"
        raise InferenceError(f"data={name} needs data.root=FOLDER (or CVATTN_DATA=FOLDER){reason}")
    where = f"CVATTN_DATA={here}" if here else "the default, data"
    return [] if was is None else [f"{was} is no folder here; taking {where}"]


def _check_agreement(network: ImageNetwork, info: DataInfo) -> None:
    if info.channels != network.channels:
        raise InferenceError(
            f"the network takes {network.channels} channels, {info.name} has {info.channels}"
        )
    if tuple(info.image_size) != network.image_size:
        raise InferenceError(
            f"the network takes images of {_by(network.image_size)} (height x width), "
            f"{info.name} has {_by(info.image_size)}"
        )
    known = network.classes
    if tuple(info.classes) != known:
        same = " in another order" if sorted(info.classes) == sorted(known) else ""
        raise InferenceError(
            f"the classes are not the network's{same}: it knows {_list(known)}; {info.name} has "
            f"{_list(info.classes)}"
        )


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
