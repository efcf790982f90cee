"""Any CNN of timm by its name, with attention put behind layers of it."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from cvattn.blocks import insert_attention
from cvattn.models.controls import BLOCKS
from cvattn.models.image_input import check_images
from cvattn.models.small_images import keep_early_size
from cvattn.models.weight_files import load_weights, name_in_order
from cvattn.system import is_offline

_RUN = "network.cnn."  # before the keys of this network in the checkpoint of a run
_BLOCK = ".inserted_attention."


class TimmCNN(nn.Module):
    """A classifier of timm (Wightman, "PyTorch Image Models", 2019) with our attention inside.

    The network itself is ``cnn``, with the names that timm gave its parameters; each block is the
    child ``inserted_attention`` of its layer (:func:`insert_attention`). timm is loaded when the
    network is built, not before.

    Args:
        name: as in ``timm.list_models()``; a tag may follow, "resnet18.a1_in1k".
        num_classes: number of logits.
        in_channels: of the images.
        pretrained: which weights :meth:`load_pretrained` takes: False = none, True = timm's, or
            those of this network in a file: a state dict or a checkpoint of timm's, or of a run of
            ours (``last.ckpt``); safetensors too. Its path, or the name of an installed package
            that has one such file (:func:`find_weights`). Where other code named the tensors they
            are matched in order (:func:`name_in_order`).
        small_images: a stem for images of about 32 pixels (:func:`keep_early_size`).
        attention: ``{"after": ..., "block": ...}``: the layers, as in :func:`insert_attention`, and
            which block: "common", "pooled" (keys and values 2x2-pooled), "biggan", "unet", or
            "frozen" (gamma stays 0: a control). None = no attention.

    Shape:
        (B, in_channels, H, W) -> (B, num_classes).

    Raises:
        ValueError: unknown names of network, tag, layer or block, with near matches; a network that
            takes images of one size only; timm's weights wanted where there are none.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        *,
        in_channels: int = 3,
        pretrained: bool | str = False,
        small_images: bool = False,
        attention: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        import timm

        check_name(name, weights=pretrained is True)
        self.name = name
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.pretrained = pretrained
        self.cnn = timm.create_model(name, num_classes=num_classes, in_chans=in_channels)
        if small_images:
            keep_early_size(self.cnn, in_channels)
        if attention is not None:
            insert_named(self.cnn, attention)

    def load_pretrained(self) -> str | None:
        """Take the weights that ``pretrained`` names, if any.

        Call this once before training (the harness does). Blocks that the weights do not know keep
        their own. timm draws a head for another number of classes anew, and adapts filters for
        images of other channels.

        Returns:
            Which weights these are, in words: of a package which file, and whether in order.

        Raises:
            ValueError: weights that cannot be had or do not fit, and what to do.
        """
        if self.pretrained is False:
            return None
        import timm

        overlay, blocks, what = None, dict[str, Tensor](), "timm's"
        if isinstance(self.pretrained, str):
            overlay, blocks, what = self._of_file(self.pretrained)
        elif is_offline():
            raise ValueError(
                f"pretrained=True: the weights of {self.name} come from the network, which "
                "CVATTN_OFFLINE=1 forbids; pretrained=FILE takes your own (HF_HUB_OFFLINE=1 "
                "instead allows those that were downloaded before)"
            )
        try:
            source = timm.create_model(
                self.name,
                pretrained=True,
                pretrained_cfg_overlay=overlay,
                num_classes=self.num_classes,
                in_chans=self.in_channels,
            )
            self.cnn.load_state_dict(source.state_dict() | blocks)
        except Exception as error:  # the clients of the hub raise nearly anything
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ValueError(
                f"pretrained={self.pretrained}: {self.name} cannot take these weights: {reason}; "
                "pretrained=FILE takes your own, pretrained=False starts from none"
            ) from error
        return what

    def _of_file(self, given: str) -> tuple[dict[str, Any], dict[str, Tensor], str]:
        """What timm has to be told to take a file's weights, those of blocks in it, what it is."""
        from timm.models import get_pretrained_cfg_value

        try:
            state, path, what = load_weights(given)
        except ValueError as error:
            raise ValueError(f"pretrained={given}: {error}") from error
        if any(key.startswith(_RUN) for key in state):
            state = {k.removeprefix(_RUN): v for k, v in state.items() if k.startswith(_RUN)}
        try:
            named = self._under_our_names(state, ordered=path.suffix != ".safetensors")
        except ValueError as error:
            raise ValueError(f"pretrained={given} is not of {self.name}: {error}") from error
        if named is not state:
            what += f", its {len(state)} tensors taken in order"
        plain = {key: value for key, value in named.items() if not _of_block(key)}
        # timm drops a head whose number of classes, as said here, is another than ours.
        heads: Any = get_pretrained_cfg_value(self.name, "classifier")
        head = heads if isinstance(heads, str) else heads[0]
        overlay = {"state_dict": plain, "num_classes": plain[f"{head}.weight"].shape[0]}
        return overlay, {key: value for key, value in named.items() if _of_block(key)}, what

    def _under_our_names(self, state: dict[str, Tensor], *, ordered: bool) -> dict[str, Tensor]:
        """The state itself, or its tensors matched in order. timm would skip some keys."""
        import timm

        ours = self.cnn.state_dict()
        missing = [key for key in ours if not _of_block(key) and key not in state]
        unknown = [key for key in state if key not in ours]
        if not missing and not unknown:
            return state
        differ = (
            f"{len(missing)} keys are missing ({', '.join(missing[:3])}), {len(unknown)} unknown "
            f"({', '.join(unknown[:3])})"
        )
        if layers := sorted({key.partition(_BLOCK)[0] for key in unknown if _of_block(key)}):
            raise ValueError(f"{differ}; it has blocks after {layers}: attention must name these")
        if not ordered:
            raise ValueError(f"{differ}; a safetensors file keeps no order to go by")
        try:
            return name_in_order(state, timm.create_model(self.name).state_dict())
        except ValueError as error:
            raise ValueError(f"{differ}; nor do they fit in order: {error}") from error

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.in_channels)
        return self.cnn(images)


def check_name(name: str, *, weights: bool) -> None:
    """ValueError unless timm has a CNN of that name, and weights for it where they are wanted."""
    import timm

    if not timm.is_model(name):
        near = get_close_matches(name.partition(".")[0], timm.list_models(), n=4)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists them"
        raise ValueError(f"timm {timm.__version__} has no network {name!r}; {hint}")
    tagged = timm.list_pretrained(name.partition(".")[0])
    if "." in name and name not in tagged:
        raise ValueError(f"timm has no weights {name!r}; there are: {', '.join(tagged) or 'none'}")
    if weights and not tagged:
        raise ValueError(
            f"pretrained=True: timm has no weights for {name}; pretrained=FILE takes your own"
        )
    if timm.models.get_pretrained_cfg_value(name, "fixed_input_size"):
        raise ValueError(
            f"{name} takes images of one size: no CNN. A Vision Transformer is "
            "cvattn.VisionTransformer (model=vit)"
        )


def _of_block(key: str) -> bool:
    return _BLOCK in key


def insert_named(cnn: nn.Module, attention: Mapping[str, Any]) -> None:
    """Put attention into it, in place, as ``attention`` of :class:`TimmCNN` says."""
    given = {"after": [], "block": "common"} | dict(attention)
    unknown = set(given) - {"after", "block"}
    if unknown:
        raise ValueError(f"attention: unknown {sorted(unknown)}; expected 'after' and 'block'")
    if given["block"] not in BLOCKS:
        near = get_close_matches(str(given["block"]), BLOCKS) or BLOCKS
        raise ValueError(f"attention.block={given['block']!r}; did you mean {', '.join(near)}?")
    if given["after"]:
        insert_attention(cnn, after=given["after"], block=BLOCKS[given["block"]])
