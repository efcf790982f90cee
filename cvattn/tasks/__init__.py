"""What is learned: loss, metrics, optimiser and schedule around a ready network."""

from cvattn.tasks.base import NetworkTask
from cvattn.tasks.classification import ClassificationTask
from cvattn.tasks.muon import Muon
from cvattn.tasks.optimisation import parameter_groups
from cvattn.tasks.sequence import SequenceTask

__all__ = ["ClassificationTask", "Muon", "NetworkTask", "SequenceTask", "parameter_groups"]
