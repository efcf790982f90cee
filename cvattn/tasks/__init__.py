"""What is learned: loss, metrics, optimiser and schedule around a ready network."""

from cvattn.tasks.classification import ClassificationTask

__all__ = ["ClassificationTask"]
