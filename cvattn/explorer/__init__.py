"""A page on which every position of an image shows what it attends to.

:func:`explore` makes it: ``given`` (with ``pictures``) or ``lines`` say what is on it, ``weights``
collects what the blocks attend to (``pooling`` makes it small, ``names`` short), ``answers`` and
``classes`` what the network takes an image for and why. :func:`explore_making` makes one of images
on their way from noise, :func:`explore_made` of those of a GAN. ``page`` writes one HTML file, with
``page.html``, ``page.css`` and the scripts beside them.
"""

from cvattn.explorer.explore import explore
from cvattn.explorer.made import explore_made
from cvattn.explorer.making import explore_making
from cvattn.explorer.page import Page

__all__ = ["Page", "explore", "explore_made", "explore_making"]
