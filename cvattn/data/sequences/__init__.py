"""Sequences: ``base`` is the data module, the data sets fill it.

``strings`` turns strings into others; ``digit_lines`` draws lines of digits (``line_drawing``), and
``line_folder`` reads lines of text from files (``line_files``).
"""
