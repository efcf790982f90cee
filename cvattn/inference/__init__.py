"""Trained networks at work: a library that the commands and the explorer call.

``network`` opens a checkpoint; ``classifier``, ``segmenter``, ``line_reader``, ``flow_generator``
and ``gan_generator`` (of which ``opening`` chooses one) add what is needed to use the network
(classes, normalisation, alphabet), and predict or make images;
``images`` reads files as they were read in training; ``own_data`` finds the data that a network was
trained on. The last one needs Lightning and is imported by its full name.
"""

from cvattn.inference.classifier import (
    Classifier,
    LabelClassifier,
    as_classifier,
    open_classifier,
)
from cvattn.inference.errors import InferenceError, NotFiniteError
from cvattn.inference.flow_generator import FlowGenerator, Way
from cvattn.inference.gan_generator import GANGenerator, GANWay
from cvattn.inference.generator import Generator
from cvattn.inference.images import find_images
from cvattn.inference.line_reader import LineReader, as_line_reader
from cvattn.inference.network import open_network
from cvattn.inference.opening import as_generator, generator_of, open_generator
from cvattn.inference.segmenter import Segmenter, as_image_network, as_segmenter, open_segmenter

__all__ = [
    "Classifier",
    "FlowGenerator",
    "GANGenerator",
    "GANWay",
    "Generator",
    "InferenceError",
    "LabelClassifier",
    "LineReader",
    "NotFiniteError",
    "Segmenter",
    "Way",
    "as_classifier",
    "as_generator",
    "as_image_network",
    "as_line_reader",
    "as_segmenter",
    "find_images",
    "generator_of",
    "open_classifier",
    "open_generator",
    "open_network",
    "open_segmenter",
]
