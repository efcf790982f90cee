"""How good generated images are: distances, whether a classifier knows them, whether they copy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from cvattn.quality.features import extract
from cvattn.quality.ladder import Rung, floor
from cvattn.quality.neighbours import Neighbours, as_points, find_neighbours
from cvattn.quality.reference import Distances, Reference

_BATCH = 256


@dataclass(frozen=True)
class Accuracy:
    """How often a classifier says the class that was asked for.

    Attributes:
        overall: share of the samples.
        by_class: the same for each class by name; None of a class without samples.
        test_overall, test_by_class: of test images, as many as there are samples, by the same
            classifier: where the samples' accuracy is to be seen from.
    """

    overall: float
    by_class: Mapping[str, float | None]
    test_overall: float
    test_by_class: Mapping[str, float | None]


@dataclass(frozen=True, eq=False)
class Judgement:
    """What is known of samples.

    Attributes:
        data, fingerprint: which data they were compared with.
        count, draws, seed: as in :class:`Reference`.
        samples: the distances of the samples from the test images.
        floor: of the training images.
        ladder: of training images made worse; empty if it was not given.
        accuracy: None without a classifier.
        pixels, features: nearest training images in both spaces.
    """

    data: str
    fingerprint: str
    count: int
    draws: int
    seed: int
    samples: Distances
    floor: Rung
    ladder: tuple[Rung, ...]
    accuracy: Accuracy | None
    pixels: Neighbours
    features: Neighbours

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file; of the neighbours the shares and medians."""
        return {
            "data": {"name": self.data, "fingerprint": self.fingerprint},
            "count": self.count,
            "draws": self.draws,
            "seed": self.seed,
            "distances": _plain(self.samples),
            "floor": _plain(self.floor.distances),
            "ladder": {rung.name: _plain(rung.distances) for rung in self.ladder},
            "accuracy": None if self.accuracy is None else asdict(self.accuracy),
            "neighbours": {each.space: _summary(each) for each in (self.pixels, self.features)},
        }


def judge(
    samples: Tensor,
    reference: Reference,
    *,
    labels: Tensor | None = None,
    classifier: Callable[[Tensor], Tensor] | None = None,
    ladder: Sequence[Rung] = (),
    among: int | None = None,
) -> Judgement:
    """Compare generated images with a data set.

    ::

        reference = Reference(data, count=len(samples))
        judgement = judge(samples, reference)

    Nearest training images are looked for by pixels among all of them, and by features among some.

    Args:
        samples: uint8 (N, C, H, W), of the data's channels and size, N = ``reference.count``.
        labels: int64 (N,), the classes that were asked for; None = they were not.
        classifier: uint8 (B, C, H, W) -> logits (B, classes), to see whether samples are of their
            classes. Of an ``inference.Classifier`` c, that takes the data's images:
            ``lambda pixels: c.network(c.normalise(pixels.numpy()))``.
        ladder: the rungs of :func:`cvattn.quality.ladder` for the same reference, to be kept with
            the samples' distances; its floor is then not measured again.
        among: how many training images are searched by features: copies of others are not found.
            None = those that were drawn for the floor, whose features are known already.

    Raises:
        ValueError: samples of another kind or number; labels without a classifier, or the other way
            round; a classifier of other classes; more training images than there are.
    """
    _check(samples, reference, labels, classifier)
    searched = _searched(reference, among)
    info = reference.info
    features = extract(reference.network, samples)
    rungs = tuple(ladder) or (floor(reference),)
    accuracy = None
    if labels is not None and classifier is not None:
        accuracy = _accuracy(samples, labels, classifier, reference)
    test = reference.drawn("test", 0)
    everything = torch.arange(len(reference.images("train")))
    return Judgement(
        data=info.name,
        fingerprint=info.fingerprint,
        count=reference.count,
        draws=reference.draws,
        seed=reference.seed,
        samples=reference.compare(lambda _: features),
        floor=rungs[0],
        ladder=rungs[1:],
        accuracy=accuracy,
        pixels=find_neighbours(
            "pixels",
            as_points(samples),
            as_points(reference.images("test")[test]),
            as_points(reference.images("train")),
            everything,
        ),
        features=find_neighbours(
            reference.network.name,
            features,
            reference.features("test", test),
            reference.features("train", searched),
            searched,
        ),
    )


def _searched(reference: Reference, among: int | None) -> Tensor:
    if among is None:
        draws = range(reference.draws)
        return torch.cat([reference.drawn("train", draw) for draw in draws]).unique()
    there = len(reference.images("train"))
    if not 1 <= among <= there:
        raise ValueError(f"among={among}: expected 1 to {there} training images")
    return torch.randperm(there, generator=reference.generator("among"))[:among]


def _check(
    samples: Tensor,
    reference: Reference,
    labels: Tensor | None,
    classifier: Callable[[Tensor], Tensor] | None,
) -> None:
    info = reference.info
    expected = (reference.count, info.channels, *info.image_size)
    if samples.dtype != torch.uint8 or tuple(samples.shape) != expected:
        raise ValueError(
            f"expected samples as uint8 {expected}, as the reference of {info.name} has them, got "
            f"{samples.dtype} {tuple(samples.shape)}"
        )
    if (labels is None) != (classifier is None):
        given, lacks = ("classifier", "labels") if labels is None else ("labels", "classifier")
        raise ValueError(f"{given} without {lacks}: whether samples are of their class needs both")
    if labels is not None:
        if labels.dtype != torch.int64 or tuple(labels.shape) != (reference.count,):
            raise ValueError(
                f"expected labels as int64 ({reference.count},), got {labels.dtype} "
                f"{tuple(labels.shape)}"
            )
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(info.classes):
            raise ValueError(f"labels must lie in 0..{len(info.classes) - 1}")


def _accuracy(
    samples: Tensor,
    labels: Tensor,
    classifier: Callable[[Tensor], Tensor],
    reference: Reference,
) -> Accuracy:
    classes = reference.info.classes
    test, at = reference.data.split("test"), reference.drawn("test", 0)

    def told(images: Tensor, labels: Tensor) -> tuple[float, dict[str, float | None]]:
        with torch.inference_mode():
            logits = torch.cat([classifier(batch).cpu() for batch in images.split(_BATCH)])
        if logits.shape != (len(images), len(classes)):
            raise ValueError(
                f"the classifier gave {tuple(logits.shape)} for {len(images)} images of "
                f"{len(classes)} classes"
            )
        right = (logits.argmax(1) == labels).double()
        return right.mean().item(), {
            name: right[labels == label].mean().item() if (labels == label).any() else None
            for label, name in enumerate(classes)
        }

    return Accuracy(*told(samples, labels), *told(test.images[at], test.labels[at]))


def _plain(distances: Distances) -> dict[str, Any]:
    return {
        each.name: {"mean": each.mean, "low": each.low, "high": each.high, **asdict(each)}
        for each in distances
    }


def _summary(each: Neighbours) -> dict[str, Any]:
    return {
        "among": each.among,
        "median": each.distances.median().item(),
        "test_median": each.test_distances.median().item(),
        "threshold": each.threshold,
        "share": each.share,
        "test_share": each.test_share,
        "chance": each.chance,
        "alarm": each.alarm,
    }
