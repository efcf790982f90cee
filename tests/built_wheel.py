"""The wheel, built, and installed where nothing of the checkout is found."""

import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest
from once import once, shared_folder

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Wheel:
    """Attributes:
    file: the wheel.
    environment: of its own, with nothing in it but the wheel; it finds the libraries that the
        wheel needs where they are.
    """

    file: Path
    environment: Path

    @property
    def python(self) -> Path:
        return self.environment / "bin" / "python"

    @property
    def site(self) -> Path:
        (found,) = self.environment.glob("lib/python*/site-packages")
        return found


def installed_wheel(tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    """Built once a session, whoever asks."""
    folder = once(shared_folder(tmp_path_factory) / "wheel", _build)
    (file,) = folder.glob("*.whl")
    return Wheel(file, folder / "environment")


def _build(folder: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)], check=True
    )
    (file,) = folder.glob("*.whl")
    # The libraries it needs are taken from this environment: installing them takes minutes.
    wheel = Wheel(file, folder / "environment")
    venv.create(wheel.environment, with_pip=True, system_site_packages=False)
    here = [path for path in sys.path if path.endswith("site-packages")]
    subprocess.run(
        [str(wheel.python), "-m", "pip", "install", "--quiet", "--no-deps", str(file)], check=True
    )
    # Behind the wheel's own place, and without the .pth files that point to the checkout.
    (wheel.site / "more.pth").write_text("\n".join(here) + "\n")
