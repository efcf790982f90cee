"""``data=auto``: CIFAR-10 where it is or comes quickly, otherwise digits; decided once."""

from dataclasses import dataclass
from pathlib import Path

from cvattn.data.checks import DataError
from cvattn.data.images import cifar, cifar_files
from cvattn.data.published import promise
from cvattn.system import is_offline

PATIENCE = 180.0


@dataclass(frozen=True)
class Choice:
    """The data set's name, "cifar10" or "digits", and why, as a sentence for people."""

    name: str
    reason: str


def choose(root: str | Path, *, offline: bool = False) -> Choice:
    """CIFAR-10 if it is in ``root`` or promises to be there within 3 minutes; else digits.

    Reads file names and at most 5 seconds of a download (12 where no server answers). A damaged
    copy is still chosen: the strict data module then names the damaged file, which is better than
    training on something else without a word.

    Args:
        root: the data root.
        offline: never touch the network (``CVATTN_OFFLINE=1`` does the same).
    """
    root = Path(root).expanduser().absolute()
    try:
        found = cifar_files.find(cifar.CIFAR10Data.cifar, root)
        beside = cifar_files.not_read(cifar_files.near(cifar.CIFAR10Data.cifar, root))
    except DataError as error:
        return Choice("digits", str(error))
    if found is not None:
        return Choice("cifar10", f"found {found.words}")
    if offline or is_offline():
        return Choice("digits", f"CIFAR-10 is not in {root}{beside} and downloads are forbidden")
    best, _ = promise(cifar.CIFAR10Data.cifar.sources)
    if best is None or best.seconds is None:
        return Choice(
            "digits",
            f"CIFAR-10 is not in {root}{beside} and no server answered (data=cifar10 says what was "
            "tried)",
        )
    what = f"CIFAR-10 is not in {root}{beside}; from {best.source.name} it takes about"
    if best.seconds <= PATIENCE:
        return Choice("cifar10", f"{what} {best.seconds:.0f} s to download")
    return Choice(
        "digits",
        f"{what} {best.seconds / 60:.0f} min to download, more than {PATIENCE / 60:.0f} "
        "(data=cifar10 waits for it)",
    )
