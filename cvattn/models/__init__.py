"""Whole networks. ``cvattn.load`` builds the classes named here and no others."""

from cvattn.models.reader import Reader
from cvattn.models.sagan import SAGANClassifier
from cvattn.models.sagan_gan import SAGAN
from cvattn.models.sagan_gan_networks import SAGANDiscriminator, SAGANGenerator
from cvattn.models.segmentation import SegmentationNetwork
from cvattn.models.seq2seq import Transformer
from cvattn.models.timm_cnn import TimmCNN
from cvattn.models.unet import UNet
from cvattn.models.vit import VisionTransformer

__all__ = [
    "SAGAN",
    "Reader",
    "SAGANClassifier",
    "SAGANDiscriminator",
    "SAGANGenerator",
    "SegmentationNetwork",
    "TimmCNN",
    "Transformer",
    "UNet",
    "VisionTransformer",
]
