"""What is learned: loss, metrics, optimiser and schedule around a ready network."""

from cvattn.tasks.base import Criterion, NetworkTask
from cvattn.tasks.classification import ClassificationTask
from cvattn.tasks.flow import FlowTask
from cvattn.tasks.gan import GANTask
from cvattn.tasks.multilabel import MultilabelTask
from cvattn.tasks.muon import Muon
from cvattn.tasks.optimisation import parameter_groups
from cvattn.tasks.segmentation import SegmentationTask
from cvattn.tasks.sequence import SequenceTask
from cvattn.tasks.teacher import Teacher

__all__ = [
    "ClassificationTask",
    "Criterion",
    "FlowTask",
    "GANTask",
    "MultilabelTask",
    "Muon",
    "NetworkTask",
    "SegmentationTask",
    "SequenceTask",
    "Teacher",
    "parameter_groups",
]
