"""Data modules: samples in memory or made when needed, a batch at a time, no worker processes.

``images/`` has those of images with classes, ``sequences/`` those whose answers are strings. What
both use stands beside them: the data module (``module``), what it tells of itself (``info``), the
random numbers of a sample (``counter``), batches (``loader``), the parts (``split``), the one image
decoder (``image_files``) and its ``cache``, ``download``.

The names are imported when they are asked for: who only reads an image file with
:mod:`cvattn.data.image_files` does not wait for Lightning.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cvattn.data.auto import Choice, choose
    from cvattn.data.checks import DataError
    from cvattn.data.images.base import ImageDataModule
    from cvattn.data.images.cifar import CIFAR10Data, CIFAR100Data
    from cvattn.data.images.digit_scenes import DigitScenesData
    from cvattn.data.images.digits import DigitsData
    from cvattn.data.images.fashion_mnist import FashionMNISTData
    from cvattn.data.images.folder import FolderData
    from cvattn.data.images.hub import HubData
    from cvattn.data.images.labels_csv import LabelsCSVData
    from cvattn.data.images.masks import MaskDataModule
    from cvattn.data.images.masks_folder import MasksFolderData
    from cvattn.data.images.sourced import SourceDataModule
    from cvattn.data.images.views import VIEWS, views_of
    from cvattn.data.images.webdataset import WebDatasetData
    from cvattn.data.info import VOID, DataInfo, Facts, LabelsInfo, MaskInfo
    from cvattn.data.loader import BatchLoader
    from cvattn.data.module import DataModule
    from cvattn.data.own_loaders import LoaderData
    from cvattn.data.sequences.digit_lines import DigitLinesData
    from cvattn.data.sequences.line_folder import LineFolderData
    from cvattn.data.sequences.strings import StringsData

_MODULES = {
    "Choice": "auto",
    "choose": "auto",
    "DataError": "checks",
    "CIFAR10Data": "images.cifar",
    "CIFAR100Data": "images.cifar",
    "DigitLinesData": "sequences.digit_lines",
    "DigitScenesData": "images.digit_scenes",
    "DigitsData": "images.digits",
    "FashionMNISTData": "images.fashion_mnist",
    "FolderData": "images.folder",
    "HubData": "images.hub",
    "ImageDataModule": "images.base",
    "LabelsCSVData": "images.labels_csv",
    "LabelsInfo": "info",
    "DataInfo": "info",
    "Facts": "info",
    "LineFolderData": "sequences.line_folder",
    "MaskDataModule": "images.masks",
    "MaskInfo": "info",
    "MasksFolderData": "images.masks_folder",
    "BatchLoader": "loader",
    "DataModule": "module",
    "LoaderData": "own_loaders",
    "SourceDataModule": "images.sourced",
    "StringsData": "sequences.strings",
    "VIEWS": "images.views",
    "VOID": "info",
    "views_of": "images.views",
    "WebDatasetData": "images.webdataset",
}

__all__ = [
    "VIEWS",
    "VOID",
    "BatchLoader",
    "CIFAR10Data",
    "CIFAR100Data",
    "Choice",
    "DataError",
    "DataInfo",
    "DataModule",
    "DigitLinesData",
    "DigitScenesData",
    "DigitsData",
    "Facts",
    "FashionMNISTData",
    "FolderData",
    "HubData",
    "ImageDataModule",
    "LabelsCSVData",
    "LabelsInfo",
    "LineFolderData",
    "LoaderData",
    "MaskDataModule",
    "MaskInfo",
    "MasksFolderData",
    "SourceDataModule",
    "StringsData",
    "WebDatasetData",
    "choose",
    "views_of",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
