"""Images with classes: ``base`` is the data module, the data sets fill it.

A batch is made in this order: a data set (``digits``, ``cifar``, ``folder``) gives uint8 pixels,
``augment`` and ``rand_augment`` change those of training, ``base`` normalises. ``views`` are the
changed copies that an image is judged by at the end.
"""
