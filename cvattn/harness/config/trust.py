"""What a configuration that came in a file may do: a checkpoint may be somebody else's.

It writes nothing outside the run's folder, reads no environment variable and imports nothing but
what this package is made of, unless the command line, or ``conf/``, says the same.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cvattn.harness.config.errors import ConfigError

_OURS = re.compile(
    r"cvattn\.(models|tasks|data|harness)\.\w+|torch\.optim(\.\w+)+"
    r"|pytorch_lightning\.(callbacks\.|loggers\.)?\w+|torchvision\.transforms\.v2\.\w+"
)
# ``${name:...}``; what a name that is itself looked up would call cannot be said.
_RESOLVER = re.compile(r"\$\{\s*(\$\{|[^{}:]*(?=:))")
_PLACE = re.compile(r"(^|_)(path|dir|dirpath|root|uri|location)$")
_WRITES = {"callbacks", "logger", "trainer"}


def check_saved(cfg: DictConfig, composed: DictConfig | None, folder: Path) -> None:
    """Raise ConfigError if the configuration of a checkpoint asks for more than it may.

    Args:
        cfg: of the checkpoint, with the command line's values in it.
        composed: what ``conf/`` and the command line alone make; what they say is the user's.
        folder: of the run.
    """
    plain = OmegaConf.to_container(cfg, resolve=False)
    own = {} if composed is None else OmegaConf.to_container(composed, resolve=False)
    said = dict(_leaves(own))
    for path, value in _leaves(plain):
        if not isinstance(value, str) or path == "run_dir" or said.get(path) == value:
            continue
        again = f"give {path}= on the command line if you mean it"
        if path.endswith("._target_") and not _OURS.fullmatch(value):
            raise ConfigError(
                f"{path}={value}: the checkpoint names code that is not of this package, and a "
                f"file alone does not make it run; {again}"
            )
        for name in _RESOLVER.findall(value):
            if name.strip() != "oc.select":
                raise ConfigError(
                    f"{path}={value}: the checkpoint's configuration looks outside itself; {again}"
                )
        if path.partition(".")[0] in _WRITES:
            found = OmegaConf.select(cfg, path)
            if isinstance(found, str) and not _inside(path, found, folder):
                raise ConfigError(
                    f"{path}={found}: the checkpoint's configuration writes outside the run's "
                    f"folder, {folder}; {again}"
                )
    for name, node in (plain.get("logger") or {}).items():  # type: ignore[union-attr]
        path = f"logger.{name}"
        target = node.get("_target_") if isinstance(node, Mapping) else None
        known = target in (None, "cvattn.harness.CSVLog", said.get(f"{path}._target_"))
        if not known and not node.get("save_dir"):
            raise ConfigError(
                f"{path}: the checkpoint's logger {target} says no folder and would write into "
                f"this one; give {path}.save_dir= on the command line if you mean it"
            )


def _inside(path: str, value: str, folder: Path) -> bool:
    """Whether a value of something that writes stays in the run's folder."""
    if "://" in value or value.startswith("~"):
        return False
    if _PLACE.search(path.rpartition(".")[2]):
        return Path(value).resolve().is_relative_to(folder.resolve())
    return not Path(value).is_absolute() and ".." not in Path(value).parts


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        items: Any = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    else:
        yield path, node
        return
    for key, child in items:
        yield from _leaves(child, f"{path}.{key}" if path else str(key))
