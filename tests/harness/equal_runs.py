"""What of two runs has to be equal where their processes are not as many."""

from pathlib import Path
from typing import Any

import torch
from killing import small_run
from recorded import notes

BATCH = 8
# Draws of dropout, of paths and of mixing differ from process to process; the rest does not.
EQUAL = [
    "model.dropout=0.0",
    "model.drop_path=0.0",
    "recipe.mixup=0.0",
    f"recipe.batch_size={BATCH}",
]
# The logits of a batch are made float32 before the loss; weights and gradients are float64.
EPS = torch.finfo(torch.float32).eps


def equal_run(images: Path) -> list[str]:
    """A run whose result does not depend on its processes: 8 batches of 8 in each of 2 epochs."""
    run = [text for text in small_run(images) if "precision" not in text]
    return [*run, *EQUAL, "trainer.precision=64-true"]


def steps_of(folder: Path) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """What was trained on in the end, a note of each process for each (epoch, batch).

    Steps that came after the last checkpoint before a kill are there once more; the last time is
    the one that counts.
    """
    found: dict[tuple[int, int], dict[int, dict[str, Any]]] = {}
    for rank, lines in sorted(notes(folder).items()):
        for note in lines:
            found.setdefault((note["epoch"], note["batch"]), {})[rank] = note
    return {
        step: [parts[rank] for rank in range(parts[0]["processes"])]
        for step, parts in found.items()
    }


def check_same_samples(one: Path, several: Path) -> None:
    """No sample is lost or comes twice, and the order is the same."""
    alone, together = steps_of(one), steps_of(several)
    assert list(together) == sorted(alone)
    for step, parts in together.items():
        positions = [position for part in parts for position in part["positions"]]
        assert positions == alone[step][0]["positions"], step
        assert {len(part["positions"]) for part in parts} == {BATCH // len(parts)}, step


def check_same_first_steps(one: Path, several: Path) -> None:
    """By the rule: a loss, a mean of float32 numbers, may be off by a few eps; what three steps

    have changed in all weights by 1e-5 of itself: no sample, no factor and no order of samples has
    so little effect.
    """
    alone, together = steps_of(one), steps_of(several)
    for step in sorted(alone)[:3]:
        loss = alone[step][0]["loss"]
        mean = sum(part["loss"] for part in together[step]) / len(together[step])
        assert abs(mean - loss) <= 8 * EPS * abs(loss), step
    begin = [_weights(place / "weights0.pt") for place in (one, several)]
    then = [_weights(place / "weights3.pt") for place in (one, several)]
    assert torch.equal(*begin)
    assert (then[1] - then[0]).norm() <= 1e-5 * (then[0] - begin[0]).norm()


def check_same_end(one: Path, several: Path) -> None:
    """The weights after two epochs, in which roundings grow."""
    last = [folder / "checkpoints" / "last.ckpt" for folder in (one, several)]
    ends = [torch.load(path, weights_only=True)["state_dict"] for path in last]
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-3, atol=1e-5, msg=name)


def _weights(path: Path) -> torch.Tensor:
    """All of them, one after another."""
    return torch.cat([value.flatten().double() for value in torch.load(path).values()])
