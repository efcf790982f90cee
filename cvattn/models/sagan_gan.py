"""SAGAN: a generator and a discriminator with self-attention, trained against each other."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cvattn.models.image_input import channel_constants
from cvattn.models.sagan_gan_layers import Attention, Init, Upsampling
from cvattn.models.sagan_gan_networks import SAGANDiscriminator, SAGANGenerator


class SAGAN(nn.Module):
    """A network that makes images of a class from noise, and the one that it learns from.

    ``generator`` (:class:`SAGANGenerator`) and ``discriminator`` (:class:`SAGANDiscriminator`) have
    a self-attention block each, on maps of one size. Called, it makes normalised images;
    :meth:`score` judges such. Both networks know images in [-1, 1]; ``mean`` and ``std`` say how
    normalised ones lie to them, (pixel - mean) / std of pixels in 0..1.

    Zhang et al., "Self-Attention Generative Adversarial Networks" (2019), whose networks are Miyato
    and Koyama's (2018). For 32x32, which the paper has not, the widths and the default places of
    the attention are those of StudioGAN's SAGAN, whose batch norms have an epsilon of 1e-4 where
    ours have 1e-5, as BigGAN-PyTorch and mimicry. Their weights come in with ``cvattn.weights``.

    Args:
        in_channels: of the images.
        image_size: a side, or (H, W): a map of 4 to 7 pixels a side is doubled until it has that
            size, so 16, 20, 24, 28, 32, 40, ... to 128.
        classes: both networks are told one of so many; 0 = they take no labels, and the generator's
            batch norms are plain ones.
        noise_dim: numbers that an image is made from.
        width: channels of the generator's maps of up to 32 pixels a side; each doubling above
            halves them.
        discriminator_width: the same of the discriminator's maps; None = half of ``width``.
        attention: which block. "biggan" (:meth:`SelfAttention2d.biggan
            <cvattn.SelfAttention2d.biggan>`), "common" (:class:`cvattn.SelfAttention2d`), "none";
            or a control at the cost of "biggan": "frozen" (gamma stays 0) or "convolution"
            (:class:`cvattn.models.controls.ConvolutionControl`).
        attention_at: side of the maps that it sees in both networks (the height, of others than
            squares), behind the first block that gives such; None = half of the images'.
        discriminator_attention_after: numbers of the discriminator's blocks that one follows,
            instead: released codes differ there.
        rectified_shortcuts: the discriminator's shortcuts take what comes out of their block's
            first ReLU, as in StudioGAN and mimicry, where it works in place; in Miyato and Koyama's
            and BigGAN-PyTorch's they take what goes in.
        spectral_norm_generator, spectral_norm_discriminator: every convolution, linear layer and
            embedding is divided by its largest singular value, which one step of the power
            iteration follows whenever it is used in training.
        spectral_norm_labels: whether that holds for the generator's embeddings, as in StudioGAN;
            BigGAN-PyTorch and mimicry leave them as they are.
        upsampling: how the generator doubles maps: "nearest", or "bilinear" as mimicry.
        init: of all weights, "orthogonal" or "xavier" (uniform); biases start at 0.

    Attributes:
        mean, std: buffers (C, 1, 1), both 0.5 at first: normalised images are those in [-1, 1].

    Raises:
        ValueError: sizes that are not positive or fit no network, other names.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        in_channels: int = 3,
        *,
        image_size: int | Sequence[int] = (32, 32),
        classes: int = 0,
        noise_dim: int = 128,
        width: int = 256,
        discriminator_width: int | None = None,
        attention: Attention = "biggan",
        attention_at: int | None = None,
        discriminator_attention_after: Sequence[int] | None = None,
        rectified_shortcuts: bool = False,
        spectral_norm_generator: bool = True,
        spectral_norm_discriminator: bool = True,
        spectral_norm_labels: bool = True,
        upsampling: Upsampling = "nearest",
        init: Init = "orthogonal",
    ) -> None:
        super().__init__()
        self.generator = SAGANGenerator(
            in_channels,
            image_size=image_size,
            classes=classes,
            noise_dim=noise_dim,
            width=width,
            attention=attention,
            attention_at=attention_at,
            spectral_norm=spectral_norm_generator,
            spectral_norm_labels=spectral_norm_labels,
            upsampling=upsampling,
            init=init,
        )
        self.discriminator = SAGANDiscriminator(
            in_channels,
            image_size=image_size,
            classes=classes,
            width=max(1, width // 2) if discriminator_width is None else discriminator_width,
            attention=attention,
            attention_at=attention_at,
            attention_after=discriminator_attention_after,
            rectified_shortcuts=rectified_shortcuts,
            spectral_norm=spectral_norm_discriminator,
            init=init,
        )
        self.in_channels = in_channels
        self.image_size = self.generator.image_size
        self.classes = classes
        self.noise_dim = noise_dim
        self.register_buffer("mean", torch.empty(in_channels, 1, 1))
        self.register_buffer("std", torch.empty(in_channels, 1, 1))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Let normalised images be those in [-1, 1] again; all else resets itself."""
        self.mean.fill_(0.5)
        self.std.fill_(0.5)

    @torch.no_grad()
    def set_normalisation(
        self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor
    ) -> None:
        """Say how images are normalised, before training.

        Args:
            mean, std: per channel, or one for all, of pixels in 0..1.

        Raises:
            ValueError: another number of them, or a std that nothing can be divided by.
        """
        values = [
            channel_constants(name, given, self.in_channels)
            for name, given in (("mean", mean), ("std", std))
        ]
        for buffer, value in zip((self.mean, self.std), values, strict=True):
            buffer.copy_(value.to(buffer.dtype))

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Normalised images (B, in_channels, H, W); see :meth:`SAGANGenerator.forward`."""
        pixels = (self.generator(noise, labels) + 1) / 2
        return (pixels - self.mean) / self.std

    def score(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Scores (B,) of normalised images; see :meth:`SAGANDiscriminator.forward`."""
        pixels = images * self.std + self.mean
        return self.discriminator(2 * pixels - 1, labels)
