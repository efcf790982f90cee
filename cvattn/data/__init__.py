"""Data modules: samples in memory or made when needed, a batch at a time, no worker processes."""

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
