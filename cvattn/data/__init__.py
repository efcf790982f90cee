"""Data modules: samples in memory or made when needed, a batch at a time, no worker processes.

The names are imported when they are asked for: who only reads an image file with
:mod:`cvattn.data.image_files` does not wait for Lightning.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cvattn.data.auto import Choice, choose
    from cvattn.data.checks import DataError
    from cvattn.data.cifar import CIFAR10Data, CIFAR100Data
    from cvattn.data.digit_lines import DigitLinesData
    from cvattn.data.digits import DigitsData
    from cvattn.data.folder import FolderData
    from cvattn.data.image_data import ImageDataModule
    from cvattn.data.info import DataInfo, Facts
    from cvattn.data.line_folder import LineFolderData
    from cvattn.data.loader import BatchLoader
    from cvattn.data.module import DataModule
    from cvattn.data.strings import StringsData
    from cvattn.data.views import VIEWS, views_of

_ROOMS = {
    "Choice": "auto",
    "choose": "auto",
    "DataError": "checks",
    "CIFAR10Data": "cifar",
    "CIFAR100Data": "cifar",
    "DigitLinesData": "digit_lines",
    "DigitsData": "digits",
    "FolderData": "folder",
    "ImageDataModule": "image_data",
    "DataInfo": "info",
    "Facts": "info",
    "LineFolderData": "line_folder",
    "BatchLoader": "loader",
    "DataModule": "module",
    "StringsData": "strings",
    "VIEWS": "views",
    "views_of": "views",
}

__all__ = [
    "VIEWS",
    "BatchLoader",
    "CIFAR10Data",
    "CIFAR100Data",
    "Choice",
    "DataError",
    "DataInfo",
    "DataModule",
    "DigitLinesData",
    "DigitsData",
    "Facts",
    "FolderData",
    "ImageDataModule",
    "LineFolderData",
    "StringsData",
    "choose",
    "views_of",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return __all__
