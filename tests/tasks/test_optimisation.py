import math

import pytest
import torch
from torch import nn

from cvattn.blocks import insert_attention
from cvattn.core.positions import LearnedGridPositions
from cvattn.models import SAGANClassifier, Transformer, VisionTransformer
from cvattn.tasks.optimisation import parameter_groups, warmup_cosine


def names(network: nn.Module, group: dict) -> set[str]:
    known = {id(p): name for name, p in network.named_parameters()}
    return {known[id(p)] for p in group["params"]}


def roles(network: nn.Module) -> dict[str, set[str]]:
    return {group["role"]: names(network, group) for group in parameter_groups(network)}


def test_decay_spares_vectors_positions_and_the_class_token():
    network = VisionTransformer(5, image_size=(8, 12), embed_dim=6, num_heads=3, pool="cls")
    groups = parameter_groups(network)
    assert [group.get("weight_decay") for group in groups] == [None, None, 0.0]  # None: its own
    found = roles(network)
    assert {"positions.table", "class_token", "head.bias"} <= found["vector"]
    assert found["head"] == {"head.weight"}
    assert "encoder.layers.0.self_attn.q_proj.weight" in found["hidden"]
    assert all(p.ndim >= 2 for group in groups[:2] for p in group["params"])
    assert sum(map(len, found.values())) == len(list(network.parameters()))


def test_the_trained_parameters_of_a_cnn():
    network = SAGANClassifier(5, widths=(5, 7, 11))
    found = roles(network)
    assert {"attention.stage2.gamma", "layers.stem.0.bias"} <= found["vector"]
    assert "attention.stage2.query.weight" in found["hidden"]
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert set.union(*found.values()) == trained
    assert "layers.stem.0.weight" not in trained


def test_inserted_blocks_are_apart():
    network = insert_attention(SAGANClassifier(5, attention="none"), after="layers.stage1")
    groups = parameter_groups(network)
    apart = [group for group in groups if group.get("inserted")]
    assert [(group["role"], group.get("weight_decay")) for group in apart] == [
        ("hidden", None),
        ("vector", 0.0),
    ]
    found = set.union(*(names(network, group) for group in apart))
    assert found == {name for name, _ in network.named_parameters() if "inserted" in name}
    others = set.union(*(names(network, g) for g in groups if not g.get("inserted")))
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert others == trained - found


def test_timm_says_by_a_method_what_is_not_decayed():
    class Layer(nn.Linear):
        def no_weight_decay(self):
            return {"weight"}

    assert roles(nn.Sequential(Layer(3, 5))) == {"vector": {"0.weight", "0.bias"}}


def test_embeddings_are_not_hidden_and_shared_tensors_come_once():
    network = Transformer(13, 11, embed_dim=6, num_heads=3, ffn_dim=4)
    network.head.weight = network.target_embedding.weight
    found = roles(network)
    assert {"source_embedding.weight", "target_embedding.weight"} <= found["head"]
    count = sum(len(group["params"]) for group in parameter_groups(network))
    assert count == len(list(network.parameters()))


def test_frozen_parameters_and_empty_groups_are_left_out():
    network = nn.Sequential(nn.Linear(3, 5, bias=False), LearnedGridPositions(5, (1, 2)))
    network[1].table.requires_grad_(False)
    (only,) = parameter_groups(network)
    assert names(network, only) == {"0.weight"}


def test_schedule_rises_and_falls():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = warmup_cosine(optimizer, steps=20, warmup=0.25, final=0.1)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert rates[5] == pytest.approx(2.0)
    middle = 0.2 + 1.8 * 0.5 * (1 + math.cos(math.pi * 8 / 15))
    assert rates[13] == pytest.approx(middle)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)


@pytest.mark.parametrize("values", [{"warmup": 1.0, "final": 0.0}, {"warmup": 0.1, "final": 1.5}])
def test_schedule_refuses_impossible_shares(values):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match="warmup="):
        warmup_cosine(optimizer, steps=10, **values)
