"""Small SAGANs for tests, what they are given, and both networks once more by hand."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cvattn.models import SAGAN

SMALL = {"image_size": (16, 20), "noise_dim": 7, "width": 11, "discriminator_width": 9}


def filled(*args, **options) -> SAGAN:
    """With no value left that is as it began, gamma and the running moments of norms included."""
    net = SAGAN(*args, **(SMALL | options))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.4)
            if name.endswith("gamma") and parameter.requires_grad:
                parameter.fill_(-0.7)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
            if parametrize.is_parametrized(module, "weight"):
                for _ in range(5):  # spectral norms come to the weights that were drawn
                    assert module.training
                    assert module.weight is not None
    net.set_normalisation(torch.rand(net.in_channels), torch.rand(net.in_channels) + 0.1)
    return net


def given(net: SAGAN, batch: int = 3) -> tuple[Tensor, Tensor, Tensor | None]:
    """Noise, images, labels."""
    labels = torch.randint(0, net.classes, (batch,)) if net.classes else None
    images = torch.randn(batch, net.in_channels, *net.image_size)
    return torch.randn(batch, net.noise_dim), images, labels


class ByHand(nn.Module):
    """Both networks once more, from parameters and buffers alone; no buffer changes."""

    def __init__(
        self, net: SAGAN, *, upsampling: str = "nearest", rectified_shortcuts: bool = False
    ) -> None:
        super().__init__()
        self.net = copy.deepcopy(net)
        self.upsampling = upsampling
        self.rectified_shortcuts = rectified_shortcuts

    def weight(self, name: str) -> Tensor:
        state = dict(self.net.named_parameters()) | dict(self.net.named_buffers())
        if f"{name}.weight" in state:
            return state[f"{name}.weight"]
        at = f"{name}.parametrizations.weight"
        weight, u, v = (state[f"{at}.{part}"] for part in ("original", "0._u", "0._v"))
        matrix = weight.reshape(len(weight), -1)
        if self.training:
            with torch.no_grad():
                u = F.normalize(matrix @ v, dim=0)
                v = F.normalize(matrix.T @ u, dim=0)
        return weight / (u @ matrix @ v)

    def state(self, name: str) -> Tensor:
        return (dict(self.net.named_parameters()) | dict(self.net.named_buffers()))[name]

    def conv(self, name: str, x: Tensor) -> Tensor:
        weight = self.weight(name)
        bias = dict(self.net.named_parameters()).get(f"{name}.bias")
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weight(name).T + self.state(f"{name}.bias")

    def label(self, name: str, labels: Tensor) -> Tensor:
        table = self.weight(name)
        return F.one_hot(labels, len(table)).to(table.dtype) @ table

    def norm(self, name: str, x: Tensor, labels: Tensor | None) -> Tensor:
        inner = name if labels is None else f"{name}.norm"
        if self.training:
            mean = x.mean((0, 2, 3))
            var = (x - mean[:, None, None]).square().mean((0, 2, 3))
        else:
            mean, var = self.state(f"{inner}.running_mean"), self.state(f"{inner}.running_var")
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        if labels is None:
            gain, bias = self.state(f"{name}.weight"), self.state(f"{name}.bias")
            return x * gain[:, None, None] + bias[:, None, None]
        gain, bias = (self.label(f"{name}.{part}", labels) for part in ("gain", "bias"))
        return x * (1 + gain)[:, :, None, None] + bias[:, :, None, None]

    def up(self, x: Tensor) -> Tensor:
        for dim in (2, 3):
            if self.upsampling == "nearest":
                x = x.repeat_interleave(2, dim=dim)
                continue
            size = x.shape[dim]
            before = x.index_select(dim, torch.arange(-1, size - 1).clamp(min=0))
            after = x.index_select(dim, torch.arange(1, size + 1).clamp(max=size - 1))
            both = [0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after]
            x = torch.stack(both, dim=dim + 1).flatten(dim, dim + 1)
        return x

    @staticmethod
    def squares(x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / 2, W / 2, 4)."""
        parts = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).transpose(3, 4)
        return parts.flatten(4)

    def attend(self, name: str, x: Tensor) -> Tensor:
        q = self.conv(f"{name}.query", x).flatten(2)
        k, v = (self.squares(self.conv(f"{name}.{n}", x)).amax(-1) for n in ("key", "value"))
        scores = torch.einsum("bci,bcj->bij", q, k.flatten(2)).exp()
        weights = scores / scores.sum(-1, keepdim=True)
        attended = torch.einsum("bij,bcj->bci", weights, v.flatten(2))
        attended = attended.unflatten(2, x.shape[2:])
        return x + self.state(f"{name}.gamma") * self.conv(f"{name}.proj", attended)

    def forward(self, noise: Tensor, *, labels: Tensor | None) -> Tensor:
        """Made images, normalised; of 16 x 20 pixels, attention behind the first block."""
        x = self.linear("generator.linear", noise).reshape(len(noise), -1, 4, 5)
        for number in (1, 2):
            name = f"generator.block{number}"
            h = self.up(self.norm(f"{name}.norm1", x, labels).clamp(min=0))
            h = self.norm(f"{name}.norm2", self.conv(f"{name}.conv1", h), labels)
            h = self.conv(f"{name}.conv2", h.clamp(min=0))
            x = h + self.conv(f"{name}.shortcut", self.up(x))
            x = self.attend("generator.attention1", x) if number == 1 else x
        x = self.norm("generator.norm", x, None).clamp(min=0)
        return (self.conv("generator.head", x).tanh() / 2 + 0.5 - self.net.mean) / self.net.std

    def score(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Attention behind the first block."""
        x = (images * self.net.std + self.net.mean) * 2 - 1
        for number in (1, 2, 3, 4):
            name = f"discriminator.block{number}"
            h = self.conv(f"{name}.conv1", x if number == 1 else x.clamp(min=0))
            h = self.conv(f"{name}.conv2", h.clamp(min=0))
            x = x.clamp(min=0) if self.rectified_shortcuts and number > 1 else x
            if number > 2:
                x = x + h
            else:
                short = self.conv(f"{name}.shortcut", x)
                x = self.squares(h + short).mean(-1)
            x = self.attend("discriminator.attention1", x) if number == 1 else x
        h = x.clamp(min=0).flatten(2).sum(-1)
        score = self.linear("discriminator.linear", h)[:, 0]
        if labels is None:
            return score
        return score + torch.einsum("bd,bd->b", h, self.label("discriminator.label", labels))


class Scoring(nn.Module):
    """Called, it scores, or gives the squared slope of its scores: a gradient penalty."""

    def __init__(self, net: nn.Module, *, penalty: bool = False) -> None:
        super().__init__()
        self.net = net
        self.penalty = penalty

    def forward(self, images: Tensor, *, labels: Tensor | None) -> Tensor:
        score = self.net.score(images, labels)
        if not self.penalty:
            return score
        (slope,) = torch.autograd.grad(score.sum(), images, create_graph=True)
        return slope.square().sum((1, 2, 3))
