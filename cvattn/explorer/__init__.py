"""A page on which every position of an image shows what it attends to.

:func:`explore` makes it: ``images`` or ``lines`` say what is on it, ``weights`` collects what the
blocks attend to, ``page`` writes one HTML file of it (with ``page.html``, ``page.css``, ``page.js``
and ``drawing.js``).
"""

from cvattn.explorer.explore import explore
from cvattn.explorer.page import Page

__all__ = ["Page", "explore"]
