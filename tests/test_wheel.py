"""The wheel as people get it: the library and its commands, without conf/ and train.py."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_carries_the_library_and_its_commands(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"cvattn"}
    assert "cvattn/py.typed" in names

    # The libraries it needs are taken from this environment: installing them takes minutes.
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True, system_site_packages=False)
    python = environment / "bin" / "python"
    here = [path for path in sys.path if path.endswith("site-packages")]
    (site,) = environment.glob("lib/python*/site-packages")
    subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True
    )
    # Behind the wheel's own place, and without the .pth files that point to the checkout.
    (site / "more.pth").write_text("\n".join(here) + "\n")
    code = "import cvattn; print(cvattn.__file__)"
    used = subprocess.run(
        [str(python), "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert Path(used.stdout.strip()).is_relative_to(site)
    shown = subprocess.run(
        [str(environment / "bin" / "cvattn"), "--help"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "predict" in shown.stdout
    assert "evaluate" in shown.stdout
