"""What training meets: gamma, gradients, and that evaluation is training without the noise."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cvattn.testing.report import Finding, failed, not_applicable, passed
from cvattn.testing.subject import Subject


def check_gamma(subject: Subject) -> Finding:
    """``y = x + gamma * attention(x)``: with gamma = 0 exactly x, and gamma has effect."""
    gammas = {
        name: each
        for name, each in subject.module.named_parameters()
        if name.rsplit(".", 1)[-1] == "gamma"
    }
    if not gammas:
        return not_applicable("it has no parameter named gamma")
    x = subject.draw()
    before = subject(x)
    kept = {name: gamma.detach().clone() for name, gamma in gammas.items()}
    for gamma in gammas.values():
        gamma.zero_()
    at_zero = subject(x)
    for name, gamma in gammas.items():
        gamma.copy_(kept[name])
    if subject.same(before, at_zero):
        return failed(
            "gamma has no effect on the output",
            "y = x + gamma * attention(x)",
            "gamma is created and never multiplied with the attention's output",
        )
    if not torch.equal(at_zero, x):
        size = (at_zero - x).abs().max().item()
        what = "gives 0" if not at_zero.any() else f"differs from x by up to {size:.3g}"
        return failed(
            f"with gamma = 0 the output {what}",
            "exactly x, so that a new block changes nothing",
            "the residual is dropped, or inside the product: x + gamma * out, not gamma * out or "
            "gamma * (x + out)",
        )
    start = [part.detach() for name, part in subject.given.named_parameters() if name in gammas]
    now = "" if all(not part.any() for part in start) else "; it does not start at 0"
    return passed(f"gamma has effect, and gamma = 0 gives x back exactly{now}")


def check_gradients(subject: Subject) -> Finding:
    """Gradients equal finite differences in float64, and reach every parameter."""
    if subject.dtype != torch.float64:
        return not_applicable("it does not run in float64, which finite differences need")
    # A step over the kink of a max pool looks like a fault, but not three times.
    for _ in range(3):
        finding = _compare_gradients(subject)
        if finding.outcome == "passed":
            break
    return finding


def _compare_gradients(subject: Subject) -> Finding:
    parameters = subject.module.named_parameters()
    named = {name: each for name, each in parameters if each.requires_grad}
    with torch.enable_grad():
        x = subject.draw().requires_grad_()
        output = subject(x)
        uneven = torch.linspace(-1, 2, output.numel(), dtype=x.dtype, device=x.device)
        total = (output * uneven.view_as(output)).sum()
        if not total.requires_grad:
            return failed(
                "the output has no gradient at all",
                "a differentiable output",
                ".detach(), .data or torch.no_grad() on the way",
            )
        inputs = {"the input": x} | named
        gradients = torch.autograd.grad(total, list(inputs.values()), allow_unused=True)
        missing = [name for name, g in zip(inputs, gradients, strict=True) if g is None]
        if missing:
            return failed(
                f"no gradient reaches {', '.join(missing)}",
                "all parameters learn",
                "a layer that is created and not used, or .detach() or .data on the way",
            )
    directions = [subject.draw_like(each) for each in inputs.values()]
    # Rounding of a sum this large is what a difference can see.
    floor = 1e-8 * (output * uneven.view_as(output)).abs().sum().item()
    for (name, each), gradient, along in zip(inputs.items(), gradients, directions, strict=True):
        told = (gradient * along).sum().item()
        found = _slope(lambda: (subject(x) * uneven.view_as(output)).sum().item(), each, along)
        if not abs(told - found) <= floor + 1e-4 * abs(found):
            return failed(
                f"the gradient of {name} along one direction is {told:.6g}, finite differences "
                f"give {found:.6g}",
                "equal in float64",
                "a backward of one's own, or .detach() or .data on the way",
            )
    return passed(f"equal finite differences, and reach the input and {len(named)} parameters")


def _slope(total: Callable[[], float], tensor: Tensor, along: Tensor) -> float:
    """How fast ``total()`` grows when ``tensor`` moves along a direction; it is moved back."""
    kept, step = tensor.detach().clone(), 1e-6
    ends = []
    for sign in (1, -1):
        tensor.data.copy_(kept + sign * step * along)
        ends.append(total())
    tensor.data.copy_(kept)
    return (ends[0] - ends[1]) / (2 * step)


def check_eval(subject: Subject) -> Finding:
    """Evaluation has no randomness, and without dropout training gives the same."""
    x = subject.draw()
    if not subject.same(subject(x), subject(x)):
        subject.random = True
        return failed(
            "in eval mode the same input gives different outputs",
            "no randomness outside training",
            "dropout in eval: pass dropout_p=p if self.training else 0.0 to "
            "scaled_dot_product_attention, training=self.training to F.dropout",
        )
    training = copy.deepcopy(subject.module).train()
    before = _state(training)
    first, second = subject(x, module=training), subject(x, module=training)
    if any(not torch.equal(a, b) for a, b in zip(before, _state(training), strict=True)):
        return not_applicable("its state moves in training (batch norm, spectral norm)")
    if not subject.same(first, second):
        return passed("eval has no randomness; training has (dropout)")
    if not subject.same(first, subject(x)):
        return failed(
            "training and eval differ, and training has no randomness",
            "the same output where nothing is dropped",
            "a factor or a path that depends on self.training",
        )
    return passed("eval has no randomness and equals training")


def _state(module: nn.Module) -> list[Tensor]:
    return [each.detach().clone() for each in module.buffers()]
