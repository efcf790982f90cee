"""What a data set says about itself."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataInfo:
    """Facts that models, tasks and summaries need about a data set.

    Known before any pixel is read (from ``describe()``): the name, the classes, the channels and
    the image size. What needs pixels is completed by ``setup()`` and then found in ``.info``.

    Attributes:
        name: "cifar10", "cifar100", "digits" or "folder".
        classes: the class names; label ``i`` means ``classes[i]``.
        channels: channels of an image.
        image_size: (H, W) in pixels.
        mean, std: per channel, of the training pixels scaled to 0..1; empty while they are still
            to be measured (a folder of images before ``setup()``).
        train_size, val_size, test_size: images in each part.
        source: where the data came from, in words.
        official_pixels: whether the pixels are the published ones, bit for bit; None where the
            question has no meaning or is not answered yet.
        fingerprint: the first 16 hex digits of the sha256 of the test pixels; "" before setup.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_size: int
    val_size: int
    test_size: int
    source: str
    official_pixels: bool | None = None
    fingerprint: str = ""
