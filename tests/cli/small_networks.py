"""Small networks that look trained: gamma != 0, batch norm with statistics, answers that differ."""

import torch

from cvattn import checkpoint, models
from cvattn.models import UNet

MEAN, STD = 0.3045637, 0.3233967  # of the digits
DIGITS = {
    "classes": list("0123456789"),
    "mean": [MEAN] * 3,
    "std": [STD] * 3,
    "image_size": [32, 32],
    "channels": 3,
    "config": {"data": {"_target_": "cvattn.data.DigitsData", "batch_size": 97, "seed": 0}},
}
SAGAN = {"num_classes": 10, "in_channels": 3, "image_size": [32, 32], "widths": [7, 11, 13]}
VIT = {
    "num_classes": 10,
    "in_channels": 3,
    "image_size": [32, 32],
    "patch_size": 8,
    "embed_dim": 12,
    "num_heads": 2,
    "ffn_dim": 17,
    "num_layers": 2,
}
READER = {"target_vocab": 6, "embed_dim": 12, "num_heads": 3, "ffn_dim": 17, "stem": [4, 6]}
READER_META = {"alphabet": list("aé界"), "max_length": 7, "height": 32, "mean": [0.3], "std": [0.4]}
UNET = {
    "in_channels": 3,
    "image_size": [6, 10],
    "width": 6,
    "multipliers": [1, 2],
    "attention_at": [1],
}
UNET_META = {
    "classes": ["shirt", "a/bag", "boot"],
    "mean": [0.4, 0.5, 0.3],
    "std": [0.25, 0.2, 0.3],
    "image_size": [6, 10],
    "channels": 3,
}


def write_unet(path, **args):
    """A checkpoint of a U-Net of three classes, none of whose parts does nothing; its path."""
    torch.manual_seed(7)
    args = UNET | {"classes": 3} | args
    network = UNet(**args)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    checkpoint.save(path, network, args=args, meta=UNET_META)
    return path


def write(path, cls, args, meta, images=None):
    """A checkpoint at ``path`` of a network that has random weights; returns the network too.

    ``images``: normalised, such as it shall tell apart; random ones if None.
    """
    torch.manual_seed(4099)
    if images is None:
        images = torch.randn(23, args["in_channels"], *args["image_size"])
    network = cls(**args)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.endswith("gamma"):
                value.fill_(0.7)
        network.train()
        for _ in range(20):  # batch norm's averages, which forget a tenth each time
            network(images)
        # As a trained head: every output is sometimes the largest.
        logits = network.eval()(images)
        network.head.bias.sub_(logits.mean(0))
        scale = 1.5 / logits.std(0)
        network.head.bias.mul_(scale)
        network.head.weight.mul_(scale[:, None])
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(path, network, args=args, meta=meta)
    return network


def folder_meta(image_size, root="gone"):
    """As of a run on a folder of cats and dogs."""
    return {
        "classes": ["cat", "dog"],
        "mean": [0.45] * 3,
        "std": [0.22] * 3,
        "image_size": list(image_size),
        "channels": 3,
        "config": {
            "data": {
                "_target_": "cvattn.data.FolderData",
                "root": str(root),
                "image_size": list(image_size),
                "mean": None,
                "std": None,
                "crop_pad": 1,
            }
        },
    }


GAN = {"in_channels": 3, "image_size": [16, 20], "width": 6, "noise_dim": 5}
GAN_META = UNET_META | {"image_size": [16, 20]}


def write_gan(path, **args):
    """A checkpoint of a GAN of three classes, whose attention does something; its path."""
    torch.manual_seed(7)
    args = GAN | {"classes": 3} | args
    network = models.SAGAN(**args)
    network.set_normalisation(GAN_META["mean"], GAN_META["std"])
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.8)
        for name, buffer in network.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    checkpoint.save(path, network, args=args, meta=GAN_META)
    return path
