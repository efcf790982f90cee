"""The wheel and the source archive as people get them."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from built_wheel import installed_wheel

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_carries_the_library_its_commands_and_the_configuration(
    tmp_path, tmp_path_factory, monkeypatch
):
    monkeypatch.delenv("PYTHONPATH", raising=False)  # it may name the checkout
    wheel = installed_wheel(tmp_path_factory)
    names = zipfile.ZipFile(wheel.file).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"cvattn"}
    assert "cvattn/py.typed" in names
    conf = {f"cvattn/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert conf <= set(names)
    assert {f"cvattn/explorer/page.{kind}" for kind in ("html", "css", "js")} <= set(names)

    code = "import cvattn; print(cvattn.__file__)"
    used = subprocess.run(
        [str(wheel.python), "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert Path(used.stdout.strip()).is_relative_to(wheel.site)
    program = str(wheel.environment / "bin" / "cvattn")
    shown = subprocess.run(
        [program, "--help"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert "predict" in shown.stdout
    assert "evaluate" in shown.stdout

    # Outside of any checkout, with an experiment of the user's own.
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    own = "# @package _global_\nmodel: {widths: [4, 8, 5]}\ntrainer: {max_epochs: 1}\n"
    (tmp_path / "mine" / "experiment" / "small.yaml").write_text(own)
    words = ["--config-dir", "mine", "experiment=small", "data=digits", "hydra.run.dir=run"]
    command = [program, "train", *words]
    trained = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert (tmp_path / "run" / "summary.json").is_file()
    assert "python -m cvattn train ckpt_path=run/checkpoints/last.ckpt" in trained.stdout
    assert (
        subprocess.run([*command, "model=vti"], cwd=tmp_path, capture_output=True).returncode == 2
    )


@pytest.mark.slow
def test_the_source_archive_carries_what_its_tests_need(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--sdist", "--outdir", str(tmp_path), str(ROOT)], check=True
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    some = ["test_import.py", "docs", "cli/test_main.py", "core/test_masks.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider"]
        + [f"tests/{each}" for each in some],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
