"""Any CNN of timm by its name, with attention put behind layers of it."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from torch import Tensor, nn

from cvattn.models.image_input import check_images, enlarged
from cvattn.models.named_attention import insert_named
from cvattn.models.small_images import keep_early_size
from cvattn.models.trained_input import TrainedInput, Values, wanted_by_run
from cvattn.models.weight_files import load_weights, meta_of_run, name_in_order
from cvattn.system import is_offline

_RUN = "network.cnn."  # before the keys of this network in the checkpoint of a run
_INPUT = "network.trained_input."
_BLOCK = ".inserted_attention."


class _OfFile(NamedTuple):
    """What timm has to be told to take a file's weights, those of blocks in it, what it is.

    Attributes:
        wanted: mean and standard deviation of the images that it was trained on, if it says so.
    """

    overlay: dict[str, Any]
    blocks: dict[str, Tensor]
    what: str
    wanted: tuple[Values, Values] | None


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
            are matched in order (:func:`name_in_order`). Images are then converted to the mean and
            standard deviation that the weights were trained on (:meth:`set_normalisation`).
        small_images: a stem for images of about 32 pixels (:func:`keep_early_size`).
        input_size: pixels of the shorter side to which smaller images are enlarged before the first
            layer, bilinearly: the other way to small images, for pretrained filters. None = they
            stay as they are.
        attention: ``{"after": ..., "block": ...}``: the layers, as in :func:`insert_attention`, and
            which block: "common", "pooled" (keys and values 2x2-pooled), "biggan", "unet", or
            "none"; or a control: "frozen" (gamma stays 0), or "convolution"
            (:class:`cvattn.models.controls.ConvolutionControl`, at the cost of "common" on square
            images of ``input_size``). None = no attention, either.

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
        input_size: int | None = None,
        attention: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        import timm

        check_name(name, weights=pretrained is True)
        if input_size is not None and (input_size < 1 or small_images):
            raise ValueError(
                f"input_size={input_size} must be at least 1"
                if input_size < 1
                else f"input_size={input_size} enlarges small images and small_images=True gives "
                "them a stem of their own: choose one"
            )
        self.name = name
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.pretrained = pretrained
        self.input_size = input_size
        self.trained_input = None if pretrained is False else TrainedInput(in_channels)
        self.cnn = timm.create_model(name, num_classes=num_classes, in_chans=in_channels)
        if small_images:
            keep_early_size(self.cnn, in_channels)
        if attention is not None:
            insert_named(self.cnn, attention, image_size=input_size)

    def load_pretrained(self) -> str | None:
        """Take the weights that ``pretrained`` names, if any.

        Call this once before training (the harness does). Blocks that the weights do not know keep
        their own. timm adapts filters for images of other channels. A head for another number of
        classes begins at zero (Kolesnikov et al., "Big Transfer", 2020): timm draws it, in
        EfficientNets so wide that its first gradients undo what the filters know.

        Returns:
            Which weights these are, in words: of a package which file, and whether in order.

        Raises:
            ValueError: weights that cannot be had or do not fit, and what to do.
        """
        if self.trained_input is None:
            return None
        import timm

        overlay, blocks, what = None, dict[str, Tensor](), "timm's"
        wanted = self._wanted_by_timms()
        if isinstance(self.pretrained, str):
            overlay, blocks, what, wanted = self._of_file(self.pretrained)
        elif is_offline():
            raise ValueError(
                f"pretrained=True: the weights of {self.name} come from the network, which "
                "CVATTN_OFFLINE=1 forbids; pretrained=FILE takes your own (HF_HUB_OFFLINE=1 "
                "instead allows those that were downloaded before)"
            )
        try:
            source: Any = timm.create_model(
                self.name,
                pretrained=True,
                pretrained_cfg_overlay=overlay,
                num_classes=self.num_classes,
                in_chans=self.in_channels,
            )
            if self.num_classes != (overlay or source.pretrained_cfg)["num_classes"]:
                for parameter in source.get_classifier().parameters():
                    nn.init.zeros_(parameter)
            self.cnn.load_state_dict(source.state_dict() | blocks)
        except Exception as error:  # the clients of the hub raise nearly anything
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ValueError(
                f"pretrained={self.pretrained}: {self.name} cannot take these weights: {reason}; "
                "pretrained=FILE takes your own, pretrained=False starts from none"
            ) from error
        self.trained_input.wanted = wanted
        return what

    def set_normalisation(self, mean: Values, std: Values) -> None:
        """Say how images are normalised: trained weights get them as they were in their training.

        Call this once before training, after :meth:`load_pretrained` (the harness does). Without
        pretrained weights nothing is converted.

        Args:
            mean, std: per channel, or one for all, of pixels in 0..1.

        Raises:
            ValueError: another number of them, or a std that nothing can be divided by.
        """
        if self.trained_input is not None:
            self.trained_input.convert(mean, std)

    def _wanted_by_timms(self) -> tuple[Values, Values] | None:
        said: Any = self.cnn.pretrained_cfg
        return said["mean"], said["std"]

    def _of_file(self, given: str) -> _OfFile:
        """What a file of weights has."""
        from timm.models import get_pretrained_cfg_value

        try:
            state, path, what = load_weights(given)
        except ValueError as error:
            raise ValueError(f"pretrained={given}: {error}") from error
        wanted = self._wanted_by_timms()
        if any(key.startswith(_RUN) for key in state):
            wanted = wanted_by_run(meta_of_run(path), _below(_INPUT, state))
            state = _below(_RUN, state)
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
        blocks = {key: value for key, value in named.items() if _of_block(key)}
        return _OfFile(overlay, blocks, what, wanted)

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
        if self.trained_input is not None:
            images = self.trained_input(images)
        return self.cnn(enlarged(images, self.input_size))


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


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is under the prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _of_block(key: str) -> bool:
    return _BLOCK in key
