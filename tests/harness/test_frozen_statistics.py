"""callbacks=[default,frozen_statistics]: trained weights learn on with the moments they have."""

import pytest
import torch
from runs import TINY
from test_timm_runs import TIMM

import cvattn
from cvattn import SelfAttention2d, insert_attention
from cvattn.blocks.upkeep import CHILD
from cvattn.harness import FrozenStatistics, TrainingStopped
from cvattn.harness.assemble import assemble

FROZEN = "callbacks=[default,frozen_statistics]"


@pytest.fixture
def weights(tmp_path):
    """Of a network whose batch norms have seen images of another kind."""
    import timm

    theirs = timm.create_model("test_resnet", num_classes=13).train()
    for _ in range(3):
        theirs(3 * torch.randn(8, 3, 37, 41) + 2)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def moments(state):
    return {k: v for k, v in state.items() if "running_" in k or "num_batches_tracked" in k}


def test_moments_stay_and_all_else_learns(run, weights, tmp_path):
    """Over a validation in between, after which all of the network is in training mode again."""
    run([*TIMM, f"model.pretrained={weights}", FROZEN, "trainer.max_epochs=2"])
    given = torch.load(weights)
    found = cvattn.load(tmp_path / "run" / "checkpoints" / "last.ckpt").cnn.state_dict()
    assert len(moments(given)) > 3 * 5
    for name, value in moments(given).items():
        assert torch.equal(found[name], value), name
    for name in ("bn1.weight", "bn1.bias", "layer4.0.conv1.weight"):
        assert not torch.equal(found[name], given[name]), name


def test_each_step_normalises_by_them_but_in_new_blocks(weights, composed):
    task = assemble(composed([*TIMM, f"model.pretrained={weights}"])).task
    cnn = task.network.cnn
    insert_attention(cnn, after="layer2", block=SelfAttention2d.non_local)
    callback = FrozenStatistics()
    callback.on_train_start(None, task)
    task.network.train()
    callback.on_train_batch_start(None, task, None, 0)
    assert task.network.training
    learning = [n for n, m in cnn.named_modules() if "Norm" in type(m).__name__ and m.training]
    assert learning
    assert all(name.startswith(f"layer2.{CHILD}.") for name in learning)
    norm = cnn.bn1
    maps = torch.randn(5, norm.num_features, 7, 3)
    mean, var, scale, shift = (
        value[:, None, None]
        for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    torch.testing.assert_close(norm(maps), (maps - mean) / (var + norm.eps).sqrt() * scale + shift)


def test_weights_that_nobody_trained_are_refused(run):
    with pytest.raises(TrainingStopped, match=r"mean 0 and variance 1.*model\.pretrained"):
        run([*TIMM, FROZEN])


def test_a_network_without_batch_norms_is_refused(run):
    vit = ["model=vit", "model.stem=patch", "model.embed_dim=8", "model.num_layers=1"]
    others = [each for each in TINY if not each.startswith("model")]
    with pytest.raises(TrainingStopped, match="no batch norms"):
        run([*others, *vit, "model.num_heads=2", FROZEN])
