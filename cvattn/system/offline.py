"""``CVATTN_OFFLINE``: whether anything may be downloaded. Every package of ours asks here."""

import os


def is_offline() -> bool:
    """Whether ``CVATTN_OFFLINE`` forbids downloads (1, true, yes; unset, 0, false, no: allowed).

    Raises:
        ValueError: it says anything else.
    """
    value = os.environ.get("CVATTN_OFFLINE", "").strip().lower()
    if value in ("1", "true", "yes", "on"):
        return True
    if value in ("", "0", "false", "no", "off"):
        return False
    raise ValueError(f"CVATTN_OFFLINE={value!r} is not understood; use 1 (no downloads) or 0")
