"""What is learned: loss, metrics, optimiser and schedule around a ready network."""

from cvattn.tasks.classification import ClassificationTask
from cvattn.tasks.muon import Muon
from cvattn.tasks.optimisation import parameter_groups

__all__ = ["ClassificationTask", "Muon", "parameter_groups"]
