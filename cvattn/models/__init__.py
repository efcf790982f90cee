"""Whole networks. ``cvattn.load`` builds the classes named here and no others."""

from cvattn.models.reader import Reader
from cvattn.models.sagan import SAGANClassifier
from cvattn.models.segmentation import SegmentationNetwork
from cvattn.models.seq2seq import Transformer
from cvattn.models.timm_cnn import TimmCNN
from cvattn.models.unet import UNet
from cvattn.models.vit import VisionTransformer

__all__ = [
    "Reader",
    "SAGANClassifier",
    "SegmentationNetwork",
    "TimmCNN",
    "Transformer",
    "UNet",
    "VisionTransformer",
]
