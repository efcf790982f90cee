"""Who only reads an image file does not wait for the training stack."""

import subprocess
import sys

import cvattn.data


def test_image_files_are_read_without_lightning(tmp_path):
    program = (
        "import sys; import cvattn.data.image_files, cvattn.data.line_files, cvattn.cli.images; "
        "print(sorted(m for m in ('pytorch_lightning', 'torchvision', 'hydra') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_every_public_name_is_there():
    for name in cvattn.data.__all__:
        assert getattr(cvattn.data, name) is not None
    assert dir(cvattn.data) == cvattn.data.__all__
    assert not hasattr(cvattn.data, "CIFAR11Data")
