"""Self-attention for CNN feature maps, as SAGAN has it: every position attends to every other."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvattn.blocks.plain_layers import is_plain
from cvattn.core.attention import attention, attention_weights
from cvattn.core.attention.inputs import check_rows_wanted
from cvattn.core.observed import Observed, Observers

# One node each in a graph of torch.fx: they branch on shapes, which a tracer does not know.
torch.fx.wrap("attention")
torch.fx.wrap("attention_weights")
torch.fx.wrap("_check_map")


class SelfAttention2d(nn.Module):
    """``y = x + gamma * proj(softmax(q k^T) v)`` on a feature map (B, C, H, W).

    q, k and v are 1x1 convolutions of x; the H*W positions are the tokens; the scores are not
    scaled; gamma is learned and starts at 0, so that a new block is exactly the identity and can be
    put into a trained network. Zhang et al., "Self-Attention Generative Adversarial Networks"
    (2019), section 3.

    The default is the common form, which most copied snippets follow: q and k have C/8 channels, v
    has C, biases, no output projection, keys at full resolution. Where it differs from those: any
    C >= 1 works (q and k keep at least 1 channel), and large maps never store the (H*W) x (H*W)
    matrix. :meth:`biggan` is the form of the released SAGAN and BigGAN code.

    All four convolutions are modules that hooks, adapters, pruning, quantisation and norms act on.
    A ``proj`` that is a plain convolution is folded with gamma into one product, which stores one
    map less for the backward pass (:func:`cvattn.blocks.plain_layers.is_plain`).

    ``torch.fx`` traces the block with attention as one node. ``torch.jit.trace`` keeps what one
    input decided: a trace made on a small map stores all scores of a large one (use
    ``torch.export``), and TorchScript's compiler, ``torch.jit.script``, does not take it.

    Args:
        in_channels: channels C of the map.
        qk_channels: channels of q and k; None = max(1, C // 8).
        value_channels: channels of v; None = C. Other than C only with ``out_proj``.
        num_heads: divides qk_channels and value_channels.
        kv_pool: side of the max-pooling of keys and values (``ceil_mode``, so odd maps work);
            1 = none.
        out_proj: a 1x1 convolution from value_channels back to C.
        bias: biases in all convolutions.
        spectral_norm: spectral normalisation of all convolutions, as GANs use it.
        gamma_init: starting value of gamma, a parameter of shape (1,). Its sign means nothing.
        device, dtype: of the parameters, as in torch's own layers.

    Shape:
        (B, C, H, W) -> (B, C, H, W), same dtype and memory format; any H, W >= 1.

    Raises:
        ValueError: channels that do not fit each other or the input.
    """

    observers: Observers = ()

    def __init__(
        self,
        in_channels: int,
        *,
        qk_channels: int | None = None,
        value_channels: int | None = None,
        num_heads: int = 1,
        kv_pool: int = 1,
        out_proj: bool = False,
        bias: bool = True,
        spectral_norm: bool = False,
        gamma_init: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        qk_origin = value_origin = ""
        if qk_channels is None:
            qk_channels = max(1, in_channels // 8)
            near = max(num_heads, qk_channels // max(1, num_heads) * num_heads)
            qk_origin = f"; it is in_channels // 8, as none was given: qk_channels={near} would do"
        if value_channels is None:
            value_channels = in_channels
            value_origin = "; it is in_channels, as none was given (other widths: out_proj=True)"
        for name, given in (
            ("in_channels", in_channels),
            ("qk_channels", qk_channels),
            ("value_channels", value_channels),
            ("num_heads", num_heads),
            ("kv_pool", kv_pool),
        ):
            if given < 1:
                raise ValueError(f"{name}={given} must be at least 1")
        for name, given, origin in (
            ("qk_channels", qk_channels, qk_origin),
            ("value_channels", value_channels, value_origin),
        ):
            if given % num_heads:
                raise ValueError(
                    f"{name}={given} is not divisible by num_heads={num_heads}{origin}"
                )
        if value_channels != in_channels and not out_proj:
            raise ValueError(
                f"value_channels={value_channels} differs from in_channels={in_channels}: the sum "
                "with the input needs out_proj=True"
            )
        self.in_channels = in_channels
        self.num_heads = num_heads
        self.kv_pool = kv_pool
        self.spectral_norm = spectral_norm
        self.gamma_init = float(gamma_init)
        like: dict[str, Any] = {"device": device, "dtype": dtype}
        self.query = nn.Conv2d(in_channels, qk_channels, 1, bias=bias, **like)
        self.key = nn.Conv2d(in_channels, qk_channels, 1, bias=bias, **like)
        self.value = nn.Conv2d(in_channels, value_channels, 1, bias=bias, **like)
        self.proj = (
            nn.Conv2d(value_channels, in_channels, 1, bias=bias, **like) if out_proj else None
        )
        self.gamma = nn.Parameter(torch.full((1,), self.gamma_init, **like))
        if spectral_norm:
            for layer in self._convolutions():
                nn.utils.parametrizations.spectral_norm(layer)

    def _convolutions(self) -> list[nn.Conv2d]:
        layers = (self.query, self.key, self.value, self.proj)
        return [layer for layer in layers if layer is not None]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start anew, as after construction: after ``to_empty``, say, of a meta-device model."""
        for layer in self._convolutions():
            layer.reset_parameters()
            if self.spectral_norm:
                # That wrote into a weight that is computed; what it is computed from is elsewhere.
                fresh = nn.Conv2d(layer.in_channels, layer.out_channels, 1, bias=False)
                nn.utils.parametrizations.spectral_norm(fresh)
                state = fresh.get_submodule("parametrizations").state_dict()
                layer.get_submodule("parametrizations").load_state_dict(state)
        self.gamma.fill_(self.gamma_init)

    @classmethod
    def biggan(
        cls,
        in_channels: int,
        *,
        spectral_norm: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "SelfAttention2d":
        """The released SAGAN/BigGAN form: v at C/2, 2x2-pooled keys and values, output projection.

        Follows Brock et al.'s BigGAN-PyTorch (and the SAGAN release in TensorFlow). Differences:
        every width is at least 1, and odd maps are pooled with ``ceil_mode`` instead of failing.
        """
        return cls(
            in_channels,
            qk_channels=max(1, in_channels // 8),
            value_channels=max(1, in_channels // 2),
            kv_pool=2,
            out_proj=True,
            bias=False,
            spectral_norm=spectral_norm,
            device=device,
            dtype=dtype,
        )

    def forward(
        self,
        x: Tensor,
        *,
        need_weights: bool = False,
        rows: Sequence[int] | Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Add to each position what it gathers from all.

        Args:
            x: (B, C, H, W).
            need_weights: return ``(output, weights)``, weights (B, heads, H*W, keys); the keys lie
                on :meth:`key_grid`, row by row.
            rows: with ``need_weights``, the positions y * W + x whose weights are wanted; None =
                all. Memory is linear in the keys for each row.

        Returns:
            (B, C, H, W), or the pair. The output is the same, bit for bit, with and without
            weights.
        """
        _check_map(x, self.in_channels)
        check_rows_wanted(need_weights, rows)
        # Channels last is the layout of tokens, and 1x1 convolutions are faster in it on CPUs.
        # (By strides, not by memory_format=, which vmap refuses.)
        tokens = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        q = self._tokens(self.query(tokens))
        k = self._tokens(self._pool(self.key(tokens)))
        v = self._tokens(self._pool(self.value(tokens)))
        for observe in self.observers:
            size = (x.shape[-2], x.shape[-1])
            observe(Observed(q, k, {"scale": 1.0}, size=size))
        output = self._add(x, attention(q, k, v, scale=1.0))
        return (output, attention_weights(q, k, scale=1.0, rows=rows)) if need_weights else output

    def _add(self, x: Tensor, attended: Tensor) -> Tensor:
        """``x + gamma * proj(attended)``, of attended (B, heads, H*W, d)."""
        # Back to a map: (B, heads, N, d) -> (B, heads * d, H, W), channels last in memory.
        attended = attended.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[-2:])
        if self.proj is None:
            return torch.addcmul(x, self.gamma, attended).to(x.dtype)
        if not (isinstance(x, Tensor) and is_plain(self.proj)):  # fx traces with no tensors
            return torch.addcmul(x, self.gamma, self.proj(attended)).to(x.dtype)
        # gamma * (W a + b) as (gamma W) a + gamma b: the projected map need not be kept.
        weight, bias = self.gamma * self.proj.weight, self.proj.bias
        bias = None if bias is None else self.gamma * bias
        projected = self.proj._conv_forward(attended, weight, bias)
        return (x + projected).to(x.dtype)

    def key_grid(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) of the keys for a map of that size: smaller if keys are pooled."""
        return -(-height // self.kv_pool), -(-width // self.kv_pool)

    def _pool(self, x: Tensor) -> Tensor:
        return x if self.kv_pool == 1 else F.max_pool2d(x, self.kv_pool, ceil_mode=True)

    def _tokens(self, x: Tensor) -> Tensor:
        """(B, heads * d, H, W) -> (B, heads, H*W, d)."""
        return x.flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, num_heads={self.num_heads}, kv_pool={self.kv_pool}"


def _check_map(x: Tensor, in_channels: int) -> None:
    if x.ndim != 4 or x.shape[1] != in_channels:
        raise ValueError(
            f"expected a feature map (batch, {in_channels}, height, width), got shape "
            f"{tuple(x.shape)}"
        )
