"""Self-attention for feature maps of two dimensions, of one and of three."""

from cvattn.blocks.self_attention import SelfAttention


class SelfAttention2d(SelfAttention):
    """``y = x + gamma * proj(softmax(scale * q k^T) v)`` on a feature map (B, C, H, W).

    q, k and v are 1x1 convolutions of x; the H*W positions are the tokens; gamma is learned and
    starts at 0, so that a new block is exactly the identity and can be put into a trained network.
    Zhang et al., "Self-Attention Generative Adversarial Networks" (2019), section 3.

    The default is the common form, which most copied snippets follow: q and k have C/8 channels, v
    has C, biases, scores as they are, no output projection, keys at full resolution. Where it
    differs from those: any C >= 1 works (q and k keep at least 1 channel), and large maps never
    store the (H*W) x (H*W) matrix. Other forms have names: :meth:`biggan` (the released SAGAN and
    BigGAN code), :meth:`unet` (diffusion and segmentation U-Nets), :meth:`non_local`.

    All convolutions are modules that hooks, adapters, pruning, quantisation and norms act on. A
    ``proj`` that is a plain convolution is folded with gamma into one product, which stores one map
    less for the backward pass (:func:`cvattn.blocks.plain_layers.is_plain`).

    ``torch.fx`` traces the block with attention as one node. ``torch.jit.trace`` keeps what one
    input decided: a trace made on a small map stores all scores of a large one (use
    ``torch.export``), and TorchScript's compiler, ``torch.jit.script``, does not take it.

    Args:
        in_channels: channels C of the map.
        qk_channels: channels of q and k; None = max(1, C // 8).
        value_channels: channels of v, which ``proj``, a 1x1 convolution, brings back to C; None =
            C, and no ``proj``.
        num_heads: divides qk_channels and value_channels.
        norm_groups: groups of a group norm before the projections; None = no norm.
        scale: factor on the scores; None = 1/sqrt(channels of q in a head).
        gamma_init: starting value of gamma, a parameter of shape (1,), whose sign means nothing;
            None = no gamma, but a ``proj`` that starts at 0.
        kv_pool: side of the max-pooling of keys and values (``ceil_mode``, so odd maps work);
            1 = none.
        grid: (H, W) of a learned relative bias (:class:`cvattn.core.RelativeGridBias`), which is
            stored for every pair of positions: for maps that are not large; None = no positions.
        dropout: probability of dropping an attention weight, in training only.
        device, dtype: of the parameters, as in torch's own layers.

    Shape:
        (B, C, H, W) -> (B, C, H, W), same dtype and memory format; any H, W >= 1.

    Raises:
        ValueError: channels that do not fit each other or the input.
    """


class SelfAttention1d(SelfAttention):
    """:class:`SelfAttention2d` for sequences of features (B, C, L): audio, signals.

    The arguments are the same, but for ``grid``; masks are (B, L).
    """

    dimensions = 1


class SelfAttention3d(SelfAttention):
    """:class:`SelfAttention2d` for volumes (B, C, D, H, W).

    The arguments are the same, but for ``grid``; masks are (B, D, H, W).
    """

    dimensions = 3
