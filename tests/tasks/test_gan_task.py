"""The GAN task: its steps are those of the formulas, and are counted as every task's."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_near
from plain_trainer import trainer
from torch import nn
from torch.utils.data import DataLoader

from cvattn.cost import count_macs
from cvattn.data.counter import normal
from cvattn.models import SAGAN
from cvattn.tasks import GANTask
from cvattn.tasks.made_images import sliced_wasserstein, spread

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*",
    "ignore:.*does not have many workers.*",
    "ignore:.*logging interval.*",
    "ignore:.*no `val_dataloader`.*",
)
CLASSES, SHAPE, NOISE = 3, (2, 7, 9), 5


class Pair(nn.Module):
    """A generator and a discriminator of one matrix each, and one of each per class."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.noise_dim, self.classes = NOISE, classes
        self.generator = nn.Linear(NOISE + classes, 2 * 7 * 9)
        self.discriminator = nn.Linear(2 * 7 * 9 + classes, 1)
        self.told: list = []

    def forward(self, noise, labels=None):
        return self.generator(self._with(noise, labels)).view(-1, *SHAPE)

    def score(self, images, labels=None):
        return self.discriminator(self._with(images.flatten(1), labels))[:, 0]

    def _with(self, values, labels):
        self.told.append(labels)
        if labels is None:
            return values
        return torch.cat([values, F.one_hot(labels, self.classes).to(values)], dim=1)


class Seeded(GANTask):
    """Draws the same in each step, so that an oracle can draw it again."""

    def training_step(self, batch, batch_idx):
        torch.manual_seed(100 + batch_idx)
        return super().training_step(batch, batch_idx)


def make(network=None, **options) -> GANTask:
    return Seeded(
        Pair() if network is None else network,
        num_classes=CLASSES,
        optimizer=partial(torch.optim.SGD, lr=0.03),
        discriminator_optimizer=partial(torch.optim.SGD, lr=0.05),
        **{"final": 1.0, **options},
    )


def batches(*sizes: int) -> DataLoader:
    """The same images in batches of these sizes."""
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(sum(sizes), *SHAPE, generator=generator)
    labels = torch.randint(0, CLASSES, (sum(sizes),), generator=generator)
    parts = list(zip(images.split(sizes), labels.split(sizes), strict=True))
    return DataLoader(parts, batch_size=None)


def fit(tmp_path, task, *sizes, **options):
    made = trainer(tmp_path, **{"max_epochs": 1, "num_sanity_val_steps": 0, **options})
    made.fit(task, batches(*sizes))
    return made


def game(network: Pair, loader, *, steps: int, penalty: float) -> None:
    """The same training, written down: plain gradient steps on the losses of the paper."""
    own, other = list(network.generator.parameters()), list(network.discriminator.parameters())

    def step(loss, parameters, rate):
        for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.data -= rate * slope

    for number, (images, labels) in enumerate(loader):
        torch.manual_seed(100 + number)
        for real, told in zip(images.tensor_split(steps), labels.tensor_split(steps), strict=True):
            made = network(torch.randn(len(told), NOISE), told).detach()
            loss = (1 - network.score(real, told)).clamp_min(0).mean()
            loss = loss + (1 + network.score(made, told)).clamp_min(0).mean()
            # The score is linear in the image: its gradient is the row of weights.
            row = network.discriminator.weight[0, : 2 * 7 * 9]
            loss = loss + 0.5 * penalty * (row**2).sum()
            step(loss, other, 0.05)
        step(-network.score(network(torch.randn(len(told), NOISE), told), told).mean(), own, 0.03)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("steps", "penalty"), [(1, 0.0), (2, 0.0), (3, 0.7)])
def test_the_game_is_the_one_that_is_written_down(tmp_path, steps, penalty):
    network = Pair()
    oracle = copy.deepcopy(network)
    sizes = (11, 7, 8)
    made = fit(tmp_path, make(network, discriminator_steps=steps, gradient_penalty=penalty), *sizes)
    game(oracle, batches(*sizes), steps=steps, penalty=penalty)
    for name, parameter in network.named_parameters():
        assert_near(parameter, oracle.get_parameter(name), name)
    assert made.global_step == 3


def test_trap_22_the_run_is_as_long_as_it_was_told(tmp_path):
    """Lightning counts every optimiser's steps: 5 steps would be two batches and a half."""
    made = fit(tmp_path, make(discriminator_steps=3), *[6] * 9, max_epochs=-1, max_steps=5)
    assert (made.global_step, made.fit_loop.epoch_loop.batch_progress.total.completed) == (5, 5)


def test_schedules_follow_the_generators_steps(tmp_path):
    task = make(discriminator_steps=2, warmup=0.5, final=0.25)
    rates: list = []
    step = task._step
    task._step = lambda optimizer, loss, counted: (
        rates.append((counted, optimizer.param_groups[0]["lr"])),
        step(optimizer, loss, counted=counted),
    )
    fit(tmp_path, task, *[4] * 4)
    rising = [0.5, 1.0, 1.0, 0.25 + 0.75 * 0.5]
    assert [rate for counted, rate in rates if counted] == pytest.approx([0.03 * f for f in rising])
    twice = [factor for factor in rising for _ in range(2)]
    assert [rate for counted, rate in rates if not counted] == pytest.approx(
        [0.05 * f for f in twice]
    )


def test_what_is_held_stays_held_and_everything_else_learns(tmp_path):
    network = SAGAN(
        2, image_size=(28, 20), classes=CLASSES, noise_dim=NOISE, width=8, attention="frozen"
    )
    before = copy.deepcopy(network.state_dict())
    task = make(network)
    loader = DataLoader(
        [(torch.randn(5, 2, 28, 20), torch.tensor([0, 2, 1, 2, 0])) for _ in range(2)],
        batch_size=None,
    )
    trainer(tmp_path, max_epochs=1).fit(task, loader)
    held = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert held
    assert all(name.endswith("gamma") for name in held)
    same = {
        name for name, value in network.state_dict().items() if torch.equal(value, before[name])
    }
    learned = {name for name, p in network.named_parameters() if p.requires_grad}
    # What comes before a block whose gamma is 0 gets no gradient through it.
    assert not {name for name in same & learned if "attention" not in name}


def test_the_generators_step_computes_nothing_for_the_discriminators_weights(tmp_path):
    network = Pair()
    task, seen = make(network), []
    step = task._step

    def noted(optimizer, loss, *, counted):
        step(optimizer, loss, counted=counted)
        seen.append([p.grad.clone() for p in network.discriminator.parameters()])

    task._step = noted
    fit(tmp_path, task, 5)
    (before, after) = seen
    assert all(map(torch.equal, before, after))


def test_a_network_without_classes_is_told_none(tmp_path):
    network = Pair(classes=0)
    fit(tmp_path, make(network), 5)
    assert network.told
    assert all(labels is None for labels in network.told)


def test_a_network_may_draw_few_images_for_many_steps(tmp_path):
    """A last batch of fewer images than the discriminator has steps."""
    fit(tmp_path, make(discriminator_steps=4), 3)


@pytest.mark.usefixtures("float64")
def test_validation_is_the_formulas_whatever_the_batches(tmp_path):
    network = Pair()
    ((images, labels),) = batches(23)
    index = torch.arange(23 * NOISE)
    with torch.no_grad():
        made = network(normal(0x5EED, 0, index).view(23, NOISE).to(images), labels)
    wanted = {
        "val/swd": float(sliced_wasserstein(made, images)),
        "val/spread": float(spread(made, images, labels)),
    }
    for sizes in ((23,), (7, 16), (11, 11, 1)):
        (found,) = trainer(tmp_path).validate(make(network), batches(*sizes), verbose=False)
        assert found == pytest.approx(wanted, rel=1e-6)  # Lightning's own figures are float32


def test_each_process_judges_its_own_places(tmp_path):
    """Two processes have together the noise that one has alone."""
    task, images = make(), torch.zeros(11, *SHAPE)
    task._trainer = trainer(tmp_path)
    together = task._fixed_noise(images)
    for rank in (0, 1):
        part = make()
        part._trainer = type("Place", (), {"world_size": 2, "global_rank": rank})()
        own = images[rank::2]
        found = torch.cat([part._fixed_noise(own[:2]), part._fixed_noise(own[2:])])
        assert torch.equal(found, together[rank::2])


def test_what_a_training_image_costs():
    network = SAGAN(2, image_size=(28, 20), classes=3, noise_dim=5, width=8)
    given = torch.zeros(1, 2, 28, 20)
    labels = torch.zeros(1, dtype=torch.long)
    made = count_macs(network.generator, torch.zeros(1, 5), labels)
    told = count_macs(network.discriminator, given, labels)
    # Real and made through the discriminator and back; made once more for each.
    each = 2 * 3 * told + made
    own = 3 * made + 2 * told
    for steps in (1, 4):
        task = make(network, discriminator_steps=steps)
        assert 3 * task.training_macs(network, given) == pytest.approx(each + own / steps, abs=3)
    task = make(network, gradient_penalty=1.0)
    assert 3 * task.training_macs(network, given) == pytest.approx(each + own + 3 * told, abs=3)


def test_predict_makes_an_image_of_each_label(tmp_path):
    task = make()
    (images, labels), *_ = list(batches(7))
    loader = DataLoader([(images[:5], labels[:5]), (images[5:], labels[5:])], batch_size=None)
    made = torch.cat(trainer(tmp_path).predict(task, loader))
    assert made.shape == images.shape
    assert torch.equal(torch.cat(trainer(tmp_path).predict(task, loader)), made)


def test_a_collapse_is_said():
    task = make()
    assert task.remarks({"test/spread": 0.8}, [0.1]) == task.remarks({}, []) == []
    (said,) = task.remarks({"test/spread": 0.314}, [])
    assert "differ only 31% as much as real ones: the generator has collapsed" in said


def test_the_last_ten_evaluations_are_told_and_not_the_best():
    (said,) = make().remarks({}, [0.01, *(0.1 + 0.01 * n for n in range(10))])
    assert said == (
        "validation SWD of the last 10 evaluations: mean 0.145, 0.100 to 0.190; the best of all "
        "11, 0.010, is lucky"
    )


REFUSED = [
    ({"discriminator_steps": 0}, "discriminator_steps=0 must be at least 1"),
    ({"gradient_penalty": -1.0}, "gradient_penalty=-1.0 must be 0"),
    ({"gradient_penalty": float("nan")}, "gradient_penalty=nan must be 0"),
    ({"augment": ["colour"]}, r"'colour'; expected some of color, .*did you mean color"),
    ({"network": Pair(classes=4)}, "told 4 classes and the data has 3: expected 3, or 0"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_network_that_is_no_pair():
    with pytest.raises(TypeError, match=r"Linear is no pair .* no generator, discriminator, score"):
        make(nn.Linear(2, 3))
