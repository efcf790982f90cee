"""Code that is imported because the user names it."""

import importlib
import os
import sys
from types import ModuleType
from typing import Any

from cvattn.system.near_names import did_you_mean


def imported(name: str) -> Any:
    """The class or function that is named: ``my_net:Net``, or ``my_net.Net``.

    Modules are looked for where Python looks for them, and then in the working directory.

    Raises:
        ValueError: there is none, or its module cannot be imported; says why.
    """
    module_name, colon, path = name.partition(":")
    if not colon:
        module_name, _, path = name.rpartition(".")
    if not all(part.isidentifier() for part in f"{module_name}.{path}".split(".")):
        raise ValueError(f"{name!r}: expected MODULE:NAME, such as my_net:Net for Net in my_net.py")
    module = _module(module_name, name)
    while module is None and not colon and "." in module_name:  # a class within a class
        module_name, _, outer = module_name.rpartition(".")
        path = f"{outer}.{path}"
        module = _module(module_name, name)
    if module is None:
        raise ValueError(
            f"{name}: there is no module {module_name!r}, neither installed nor in {os.getcwd()}"
        )
    found: Any = module
    for part in path.split("."):
        if not hasattr(found, part):
            known = [each for each in dir(found) if not each.startswith("_")]
            near = did_you_mean(part, known)
            near = near if near.startswith("; did you mean") else ""
            holder = getattr(found, "__qualname__", module_name)
            raise ValueError(f"{name}: {holder} has no {part!r}{near}")
        found = getattr(found, part)
    return found


def _module(module: str, name: str) -> ModuleType | None:
    """None if there is no such module."""
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever a module does
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        if absent is not None and f"{module}.".startswith(f"{absent}."):
            return None
        raise ValueError(
            f"{name}: {module} cannot be imported: {type(error).__name__}: {error}"
        ) from error
