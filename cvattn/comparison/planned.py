"""A run before it is made: what is wrong with it, and what it costs."""

from dataclasses import dataclass

from omegaconf import OmegaConf

from cvattn.comparison.jobs import Job
from cvattn.cost import count_macs, count_parameters
from cvattn.harness import ConfigError, check_command_line
from cvattn.harness.config.command_line import split_arguments
from cvattn.harness.config.composition import Composer
from cvattn.harness.config.paths import CONF
from cvattn.harness.config.resolve import build, resolve


@dataclass(frozen=True)
class Plan:
    """What is known before training.

    Attributes:
        macs: multiply-accumulates of the network for one sample of the data's typical size.
        parameters: that are trained.
        unit: what a sample is: "image", say.
    """

    macs: int
    parameters: int
    unit: str


def plan(job: Job) -> Plan:
    """Compose the run and build its network; no data is read.

    Raises:
        ConfigError: it cannot be run; the message begins with its name.
    """
    try:
        return _plan(job)
    except ConfigError as error:
        raise ConfigError(f"{job.run}: {error}") from error


def _plan(job: Job) -> Plan:
    arguments = [*job.overrides, f"seed={job.seed}"]
    check_command_line(arguments, CONF)
    overrides, _, folders = split_arguments(arguments)
    configurations = Composer(CONF, folders).compose(overrides)
    if len(configurations) > 1:
        raise ConfigError("several values of a key: each is a run of its own")
    (cfg,) = configurations
    OmegaConf.update(cfg, "run_dir", ".")  # Hydra's, in a run
    data, _ = resolve(cfg, [override.input_line or "" for override in overrides])
    network = build(cfg.model, "model")
    task = build(cfg.task, "task", network=network)
    info = data.describe()
    macs = count_macs(network, *task.call_arguments(*info.zeros(info.size)))
    return Plan(macs, count_parameters(network), info.unit)
