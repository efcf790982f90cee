"""Images with classes: ``base`` is the data module, the data sets fill it.

A batch is made in this order: a data set (``digits``, ``cifar``, ``folder``) gives uint8 pixels,
``photographs`` changes those of training by what the configuration asks for (``augment``,
``colour``, ``erasing``, ``rand_augment``, ``own_transforms``), ``base`` normalises. ``views`` are
the changed copies that an image is judged by at the end.

Pictures of any size (``sourced``) come from ``sources`` and are held as ``holding`` says: in
memory, in a file (``mapped``, ``record_file``) or not at all; ``pictures`` makes batches of them in
threads, and ``resized_crop`` says which part of each is shown.
"""
