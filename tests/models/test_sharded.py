"""torch's ``fully_shard`` on our networks: two processes with half of each weight, on a CPU.

The harness trains with DDP; this is for those with a loop of their own.
"""

import os
import socket

import pytest
import torch
import torch.nn.functional as F
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing import start_processes

from cvattn import models

NETWORKS = {
    "sagan": lambda: models.SAGANClassifier(7, in_channels=1, widths=(4, 8, 5)),
    "vit": lambda: models.VisionTransformer(
        num_classes=7,
        in_channels=1,
        image_size=(12, 20),
        embed_dim=12,
        num_heads=3,
        ffn_dim=20,
        num_layers=2,
    ),
}


def compare(rank: int, name: str, port: int) -> None:
    """In each process: the gradients of its half of the batch against those of the whole."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= place | {"RANK": str(rank), "WORLD_SIZE": "2"}
    distributed.init_process_group("gloo")
    networks = []
    for _ in range(2):
        torch.manual_seed(3)
        network = NETWORKS[name]().double().eval()  # batch norm would take moments of a half
        for key, parameter in network.named_parameters():
            if key.endswith("gamma"):
                torch.nn.init.constant_(parameter, 0.3)
        networks.append(network)
    whole, sharded = networks
    fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
    images, labels = torch.randn(6, 1, 12, 20, dtype=torch.float64), torch.arange(6)
    half = slice(3 * rank, 3 * rank + 3)
    F.cross_entropy(whole(images), labels).backward()
    F.cross_entropy(sharded(images[half]), labels[half]).backward()
    expected = dict(whole.named_parameters())
    for key, parameter in sharded.named_parameters():
        assert parameter.to_local().numel() < parameter.numel() or len(parameter) < 2, key
        if not parameter.requires_grad:  # the whitening of the images
            continue
        torch.testing.assert_close(parameter.grad.full_tensor(), expected[key].grad, msg=key)
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_sharded_weights(name):
    with socket.socket() as found:
        found.bind(("", 0))
        port = found.getsockname()[1]
    start_processes(compare, (name, port), nprocs=2, start_method="fork")
