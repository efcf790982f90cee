"""What CIFAR-10 and CIFAR-100 are: names, sums and servers that tell them from everything else."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cvattn.data import remote

PARQUETS = {"train": "train-00000-of-00001.parquet", "test": "test-00000-of-00001.parquet"}


@dataclass(frozen=True)
class Cifar:
    """One of the two (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009).

    Attributes:
        name: ours, and that of the folder below a data root.
        title: for people, and (without the dash) torchvision's class, which has the official
            files' names and md5 sums.
        archive: the official archive's file name.
        label_column: of the parquet files.
        mean, std: of the 50,000 official training images, per channel, scaled to 0..1.
        counts: images of each official split.
        val_size: training images that validate.
        label_hashes: sha256 of the labels of each split as uint8, in the official order; None:
            not known, then only their counts are checked.
        official_pixels: sha256 of the first 1,000 official test images as uint8 (1000, 32, 32, 3)
            in C order; None: not known, then only the official files are known to have them.
        sources: servers to download from.
    """

    name: str
    title: str
    archive: str
    label_column: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    counts: Mapping[str, int]
    val_size: int
    label_hashes: Mapping[str, str] | None
    official_pixels: str | None
    sources: tuple[remote.Source, ...]

    @property
    def torchvision(self) -> Any:
        """torchvision's data set class."""
        from torchvision import datasets

        return getattr(datasets, self.title.replace("-", ""))

    @property
    def to_do(self) -> str:
        """What a user without the data can do; ``{root}`` is for the data root."""
        return (
            f"put {self.archive}, its extracted folder {self.torchvision.base_folder}, or the "
            f"parquet files of a Hub copy ({PARQUETS['train']} and {PARQUETS['test']}, or "
            "train/0000.parquet and test/0000.parquet) into {root}; or name the "
            "folder that has them with data.root=... or CVATTN_DATA=...; or train on data=digits, "
            "which needs no download"
        )


CIFAR10 = Cifar(
    name="cifar10",
    title="CIFAR-10",
    archive="cifar-10-python.tar.gz",
    label_column="label",
    classes=(
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
    mean=(0.4914, 0.4822, 0.4465),
    # The 0.2023, 0.1994, 0.2010 seen elsewhere are not the standard deviations.
    std=(0.2470, 0.2435, 0.2616),
    counts={"train": 50_000, "test": 10_000},
    val_size=5_000,
    label_hashes={
        "train": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
        "test": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
    },
    official_pixels="da362006b99671213d1a5d856cab2bedf64d40bad4501630ee60f4ceb2d3ec7f",
    sources=(
        remote.Source(
            "www.cs.toronto.edu",
            (
                remote.RemoteFile(
                    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                    "cifar-10-python.tar.gz",
                    170_498_071,
                ),
            ),
        ),
        remote.Source(
            "huggingface.co",
            tuple(
                remote.RemoteFile(
                    f"https://huggingface.co/datasets/uoft-cs/cifar10/resolve/main/plain_text/{n}",
                    f"cifar10/plain_text/{n}",
                    size,
                )
                for n, size in zip(PARQUETS.values(), (119_705_255, 23_940_850), strict=True)
            ),
        ),
    ),
)

CIFAR100 = Cifar(
    name="cifar100",
    title="CIFAR-100",
    archive="cifar-100-python.tar.gz",
    label_column="fine_label",
    classes=(
        *("apple", "aquarium_fish", "baby", "bear", "beaver"),
        *("bed", "bee", "beetle", "bicycle", "bottle"),
        *("bowl", "boy", "bridge", "bus", "butterfly"),
        *("camel", "can", "castle", "caterpillar", "cattle"),
        *("chair", "chimpanzee", "clock", "cloud", "cockroach"),
        *("couch", "crab", "crocodile", "cup", "dinosaur"),
        *("dolphin", "elephant", "flatfish", "forest", "fox"),
        *("girl", "hamster", "house", "kangaroo", "keyboard"),
        *("lamp", "lawn_mower", "leopard", "lion", "lizard"),
        *("lobster", "man", "maple_tree", "motorcycle", "mountain"),
        *("mouse", "mushroom", "oak_tree", "orange", "orchid"),
        *("otter", "palm_tree", "pear", "pickup_truck", "pine_tree"),
        *("plain", "plate", "poppy", "porcupine", "possum"),
        *("rabbit", "raccoon", "ray", "road", "rocket"),
        *("rose", "sea", "seal", "shark", "shrew"),
        *("skunk", "skyscraper", "snail", "snake", "spider"),
        *("squirrel", "streetcar", "sunflower", "sweet_pepper", "table"),
        *("tank", "telephone", "television", "tiger", "tractor"),
        *("train", "trout", "tulip", "turtle", "wardrobe"),
        *("whale", "willow_tree", "wolf", "woman", "worm"),
    ),
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    counts={"train": 50_000, "test": 10_000},
    val_size=5_000,
    label_hashes=None,
    official_pixels=None,
    sources=(
        remote.Source(
            "www.cs.toronto.edu",
            (
                remote.RemoteFile(
                    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
                    "cifar-100-python.tar.gz",
                    169_001_437,
                ),
            ),
        ),
    ),
)
