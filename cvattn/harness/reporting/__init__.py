"""What a run tells people.

``console`` (messages in place of tracebacks), ``progress`` lines, the ``panels`` at both ends, the
``csv_log``, ``summary.json``, the pictures (``run_pictures`` says which), and the ``sweep_table``.
"""
