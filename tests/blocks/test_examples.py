"""example= takes what the model takes; models in wrappers are refused in our words."""

import copy
import warnings

import pytest
import torch
import torchvision
from torch import Tensor, nn

from cvattn import SelfAttention2d, insert_attention


class TakesTime(nn.Module):
    """A U-Net's kind: (x, t), with t optional by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 7, 3, padding=1)
        self.time = nn.Linear(1, 7)
        self.act = nn.ReLU()
        self.up = nn.Conv2d(7, 3, 1)

    def forward(self, x: Tensor, t: Tensor, *, scale: Tensor | None = None) -> dict[str, Tensor]:
        x = self.act(self.down(x) + self.time(t[:, None].to(x.dtype))[..., None, None])
        return {"sample": self.up(x) * (1.0 if scale is None else scale)}


IMAGE, TIME = torch.randn(2, 3, 5, 7), torch.tensor([3, 40])


@pytest.mark.parametrize(
    "example",
    [
        (IMAGE, TIME),
        {"x": IMAGE, "t": TIME},
        {"t": TIME, "x": IMAGE, "scale": torch.tensor(2.0)},
        [IMAGE, TIME],
    ],
    ids=["tuple", "dict", "all keywords", "list"],
)
def test_several_inputs(example):
    model = TakesTime().eval()
    if isinstance(example, list):  # the one input is a list
        model = TakesList(model)
        after, given = "inner.act", ((example,), {})
    else:
        after = "act"
        given = ((), example) if isinstance(example, dict) else (example, {})
    kept = copy.deepcopy(example)
    args, kwargs = given
    want = model(*args, **kwargs)["sample"]
    insert_attention(model, after=after, example=example)
    torch.testing.assert_close(example, kept, rtol=0, atol=0)
    assert torch.equal(model(*args, **kwargs)["sample"], want)
    model.get_submodule(after).inserted_attention.gamma.data.fill_(0.7)
    assert not torch.equal(model(*args, **kwargs)["sample"], want)


class TakesList(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, given: list[Tensor]) -> dict[str, Tensor]:
        return self.inner(*given)


def test_the_wrong_example_is_shown():
    with pytest.raises(
        ValueError, match=r"does not take an input of \(1, 3, 64, 96\).*give example="
    ):
        insert_attention(TakesTime(), after="act")
    with pytest.raises(ValueError, match=r"does not take an input of x=\(2, 3, 5, 7\)"):
        insert_attention(TakesTime(), after="act", example={"x": IMAGE})


@pytest.mark.slow
def test_an_image_of_a_detector():
    detector = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3
    ).eval()
    images = [torch.rand(3, 96, 130), torch.rand(3, 80, 101)]
    want = detector(images)
    for example in ([images[0]], {"images": images}):
        model = copy.deepcopy(detector)
        insert_attention(model, after="backbone.body.13", example=example)
        got = model(images)
        assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(got, want, strict=True))


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3))


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(plain())


def traced() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(plain(), torch.zeros(1, 3, 9, 9))


def compiled_in_place() -> nn.Module:
    model = plain()
    model.compile()
    return model


def compiled_layer() -> nn.Module:
    model = plain()
    model[1] = torch.compile(model[1], backend="eager")
    return model


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU())


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (scripted, "before TorchScript"),
        (traced, "before TorchScript"),
        (lambda: torch.compile(plain()), "the model is compiled.*before torch.compile"),
        (compiled_in_place, "the model is compiled.*before torch.compile"),
        (compiled_layer, "'1' is compiled.*before torch.compile"),
        (lazy, r"lazy layers.*\(0.weight\); pass a batch through it first"),
    ],
)
@pytest.mark.parametrize("example", [None, torch.zeros(1, 3, 20, 28)])
def test_models_in_wrappers_are_refused(make, message, example):
    with pytest.raises(ValueError, match=message):
        insert_attention(make(), after="1", example=example)


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_a_lazy_model_that_has_seen_a_batch():
    model = lazy()
    model(torch.zeros(1, 3, 9, 9))
    assert insert_attention(model, after="1")[1].inserted_attention.in_channels == 8


def test_a_compiled_layer_elsewhere_is_no_hindrance():
    model = compiled_layer()
    assert isinstance(insert_attention(model, after="0")[0].inserted_attention, SelfAttention2d)


def _in_a_process_group(rank: int, folder: str) -> None:
    """DDP and FSDP refuse; a sharded block computes what the plain one does."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=1
    )
    with pytest.raises(ValueError, match="the model is in DistributedDataParallel"):
        insert_attention(nn.parallel.DistributedDataParallel(plain()), after="module.1")
    mesh = init_device_mesh("cpu", (1,))
    model = plain()
    fully_shard(model[0], mesh=mesh)
    with pytest.raises(ValueError, match=r"'0' is sharded \(FSDP\)"):
        insert_attention(model, after="0")

    block = SelfAttention2d.biggan(16, spectral_norm=False)
    block.gamma.data.fill_(0.7)
    x, seen = torch.randn(2, 16, 3, 5), torch.randn(2, 16, 3, 5)
    sharded = copy.deepcopy(block)
    for layer in (sharded.query, sharded.key, sharded.value, sharded.proj):
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    (block(x) * seen).sum().backward()
    output = sharded(x)
    (output * seen).sum().backward()
    torch.testing.assert_close(output, block(x))
    for (name, ours), theirs in zip(sharded.named_parameters(), block.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.full_tensor(), theirs.grad, msg=name)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_distributed_wrappers(tmp_path):
    torch.multiprocessing.spawn(_in_a_process_group, args=(str(tmp_path),), nprocs=1)
