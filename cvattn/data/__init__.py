"""Data modules: images in memory, augmented a batch at a time, with no worker processes."""

from cvattn.data.auto import Choice, choose
from cvattn.data.checks import DataError
from cvattn.data.cifar import CIFAR10Data, CIFAR100Data
from cvattn.data.digits import DigitsData
from cvattn.data.folder import FolderData
from cvattn.data.image_data import ImageDataModule
from cvattn.data.info import DataInfo
from cvattn.data.loader import BatchLoader
from cvattn.data.views import VIEWS, views_of

__all__ = [
    "VIEWS",
    "BatchLoader",
    "CIFAR10Data",
    "CIFAR100Data",
    "Choice",
    "DataError",
    "DataInfo",
    "DigitsData",
    "FolderData",
    "ImageDataModule",
    "choose",
    "views_of",
]
