"""Small U-Nets for tests, what they are given, and the network once more by hand."""

import copy
import math

import torch
import torch.nn.functional as F

from cvattn.models import UNet

SMALL = {"image_size": (8, 12), "width": 6, "multipliers": (1, 2, 3)}
KINDS = ("unet", "common", "window", "none", "frozen", "convolution")


def filled(*args, **options) -> UNet:
    """With no zero left but those of frozen attention."""
    net = UNet(*args, **(SMALL | options))
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.4)
    return net


def given(net: UNet, batch: int = 3, size: tuple[int, int] | None = None) -> tuple:
    images = torch.randn(batch, net.in_channels, *(size or net.image_size))
    times = torch.rand(batch) if net.timed else None
    labels = torch.randint(0, net.classes + 1, (batch,)) if net.classes else None
    return images, times, labels


class ByHand(UNet):
    """The network once more, from its parameters alone and without its modules."""

    @classmethod
    def of(cls, net: UNet) -> "ByHand":
        other = copy.deepcopy(net)
        other.__class__ = cls
        return other

    def forward(self, images, times=None, labels=None):
        p = dict(self.named_parameters())
        groups = {6: 1, 12: 3, 18: 2, 24: 6, 36: 4}

        def conv(name, x, stride=1):
            weight = p[f"{name}.weight"]
            return F.conv2d(x, weight, p[f"{name}.bias"], stride, weight.shape[-1] // 2)

        def linear(name, x):
            return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

        def silu(x):
            return x / (1 + torch.exp(-x))

        def norm(name, x, groups, eps=1e-5):
            parts = x.reshape(len(x), groups, -1)
            parts = parts - parts.mean(-1, keepdim=True)
            parts = parts / (parts.square().mean(-1, keepdim=True) + eps).sqrt()
            weight, bias = (p[f"{name}.{what}"][:, None, None] for what in ("weight", "bias"))
            return parts.reshape(x.shape) * weight + bias

        def attend(name, x):
            channels = x.shape[1]
            h = norm(f"{name}.norm", x, groups[channels], 1e-6)
            heads = channels // math.gcd(channels, 64)
            q, k, v = (
                conv(f"{name}.{each}", h).reshape(len(x), heads, channels // heads, -1)
                for each in ("query", "key", "value")
            )
            scores = torch.einsum("bhdi,bhdj->bhij", q, k) / (channels // heads) ** 0.5
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            h = torch.einsum("bhij,bhdj->bhdi", weights, v).reshape(x.shape)
            return x + conv(f"{name}.proj", h)

        def stage(name, x, attention):
            h = conv(
                f"{name}.residual.conv1",
                silu(norm(f"{name}.residual.norm1", x, groups[x.shape[1]])),
            )
            h = norm(f"{name}.residual.norm2", h, groups[h.shape[1]])
            if embedding is not None:
                both = linear(f"{name}.residual.embed", silu(embedding))[:, :, None, None]
                h = h * (1 + both[:, : h.shape[1]]) + both[:, h.shape[1] :]
            short = conv(f"{name}.residual.shortcut", x) if x.shape[1] != h.shape[1] else x
            x = short + conv(f"{name}.residual.conv2", silu(h))
            return attend(f"{name}.attention", x) if attention else x

        embedding = None
        if times is not None:
            waves = [1000 * times * 10000 ** (-i / 3) for i in range(3)]
            waves = torch.stack([x.cos() for x in waves] + [x.sin() for x in waves], dim=1)
            embedding = linear("time.linear2", silu(linear("time.linear1", waves)))
        if labels is not None:
            label = F.one_hot(labels, self.classes + 1).to(images.dtype) @ p["label.weight"]
            embedding = label if embedding is None else embedding + label
        numbers = [f"_{n}" if n > 1 else "" for n in range(1, self.blocks + 1)]
        x = conv("stem", images)
        kept = []
        for level in (0, 1, 2):
            x = conv(f"halve{level}", x, 2) if level else x
            for number in numbers:
                x = stage(f"down{level}{number}", x, level > 0)
                kept.append(x)
        x = stage("middle", x, True)
        for level in (2, 1, 0):
            for number in numbers:
                x = stage(f"up{level}{number}", torch.cat([x, kept.pop()], 1), level > 0)
            if level:
                x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                x = conv(f"double{level - 1}.1", x)
        return conv("head", silu(norm("norm", x, groups[6])))
