"""How good generated images are, without a hub: features of a network that a package brings.

``features`` are what images are compared by, ``distance`` how, ``reference`` the data's images that
they are compared with, ``ladder`` what the numbers mean, ``neighbours`` whether samples are copies,
``learned`` whether all that is real is among them;
``judge`` is all of it, ``pictures`` shows it.

The distances are called FD-lite0 and KD-lite0. They are not FID and KID, which are defined by
another network and another resizing, and compare only with each other: at equal N, weights and
size. Every result carries these.
"""

from cvattn.quality.distance import Distance, frechet, kernel
from cvattn.quality.features import FeatureNetwork, Lite0, extract
from cvattn.quality.judge import Accuracy, Judgement, judge
from cvattn.quality.ladder import Rung, floor, ladder
from cvattn.quality.learned import Learned, learn_from
from cvattn.quality.neighbours import Neighbours
from cvattn.quality.pictures import draw_ladder, draw_neighbours
from cvattn.quality.reference import Distances, Reference

__all__ = [
    "Accuracy",
    "Distance",
    "Distances",
    "FeatureNetwork",
    "Judgement",
    "Learned",
    "Lite0",
    "Neighbours",
    "Reference",
    "Rung",
    "draw_ladder",
    "draw_neighbours",
    "extract",
    "floor",
    "frechet",
    "judge",
    "kernel",
    "ladder",
    "learn_from",
]
