"""Training runs beside each other: which of them, with which seeds, and how far they are apart.

In the order of a comparison: ``jobs`` are the runs of a list, ``arms`` those of a swept parameter,
and ``planned`` says what is wrong with one and what it costs before anything is trained; ``queue``
makes the runs, ``rows`` keeps what came out of them; ``metrics`` are what they are compared by,
``intervals`` how sure that is; ``compared`` pairs the seeds, ``report`` says what it comes to, and
``picture`` and ``curves`` draw it.
"""
