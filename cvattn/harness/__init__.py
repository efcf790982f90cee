"""From a configuration to a trained network and its report.

``config/`` makes and checks the configuration, ``reporting/`` tells people what happens. A run
goes through the files here in this order: ``job`` (of a command line), ``fit`` (the whole run),
``start`` (what it goes out from: the command line, or a checkpoint and its ``position``),
``assemble`` (data, network, task; ``precision``, ``provenance``), ``begin`` (the first files), and
the callbacks: ``callbacks``, ``averaging``, ``frozen_statistics``, ``checkpoints``, ``run_state``,
``stopping`` (signals).
"""

from cvattn.harness.allocator import keep_freed_memory
from cvattn.harness.averaging import AveragedWeights
from cvattn.harness.callbacks import AttentionMonitor
from cvattn.harness.checkpoints import BestCheckpoint, LastCheckpoint
from cvattn.harness.config.command_line import check_command_line
from cvattn.harness.config.errors import ConfigError, TrainingStopped
from cvattn.harness.fit import fit
from cvattn.harness.frozen_statistics import FrozenStatistics
from cvattn.harness.job import run_job
from cvattn.harness.plain_trainer import resumable
from cvattn.harness.reporting.console import plain_errors
from cvattn.harness.reporting.csv_log import CSVLog
from cvattn.harness.reporting.sample_pictures import MadeGrid, SampleGrid
from cvattn.harness.reporting.sweep_table import SweepTable

__all__ = [
    "AttentionMonitor",
    "AveragedWeights",
    "BestCheckpoint",
    "CSVLog",
    "ConfigError",
    "FrozenStatistics",
    "LastCheckpoint",
    "MadeGrid",
    "SampleGrid",
    "SweepTable",
    "TrainingStopped",
    "check_command_line",
    "fit",
    "keep_freed_memory",
    "plain_errors",
    "resumable",
    "run_job",
]
