"""A package in a folder as pip leaves it, for tests of what is found in packages."""

from collections.abc import Mapping
from pathlib import Path


def install(site: Path, name: str, files: Mapping[str, bytes]) -> Path:
    """The folder of the package's module, whose code must not be run."""
    module = name.replace("-", "_")
    info = f"{module}-1.2.dist-info"
    files = {
        f"{module}/__init__.py": b"raise RuntimeError('it was run')\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n".encode(),
        **files,
    }
    for path, content in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(content)
    (site / info / "RECORD").write_text("".join(f"{path},,\n" for path in files))
    return site / module
