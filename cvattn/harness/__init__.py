"""From a configuration to a trained network and its report."""

from cvattn.harness.averaging import AveragedWeights
from cvattn.harness.callbacks import AttentionMonitor
from cvattn.harness.checkpoints import BestCheckpoint, LastCheckpoint
from cvattn.harness.command_line import check_command_line
from cvattn.harness.csv_log import CSVLog
from cvattn.harness.errors import ConfigError, TrainingStopped
from cvattn.harness.fit import fit
from cvattn.harness.job import run_job
from cvattn.harness.memory import keep_freed_memory
from cvattn.harness.shell import plain_errors
from cvattn.harness.sweep_table import SweepTable

__all__ = [
    "AttentionMonitor",
    "AveragedWeights",
    "BestCheckpoint",
    "CSVLog",
    "ConfigError",
    "LastCheckpoint",
    "SweepTable",
    "TrainingStopped",
    "check_command_line",
    "fit",
    "keep_freed_memory",
    "plain_errors",
    "run_job",
]
