"""benchmarks/jpeg_copy.py: the copy that our figures are measured on, from official pixels."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from copies import lay_out
from PIL import Image

from cvattn.data import CIFAR10Data

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import jpeg_copy


def test_every_image_is_a_jpeg_of_quality_75_in_its_place(tiny, tmp_path, monkeypatch):
    lay_out(tiny, tmp_path / "official", "folder")
    target = tmp_path / "copy"
    monkeypatch.setattr("sys.argv", ["jpeg_copy.py", str(tmp_path / "official"), str(target)])
    assert jpeg_copy.main() == 0
    copy = CIFAR10Data(root=target)
    copy.setup()
    test = copy.split("test")
    assert test.labels.tolist() == tiny.labels["test"].tolist()
    for ours, pixels in zip(test.images, tiny.pixels["test"], strict=True):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=75, subsampling="4:2:0")
        want = np.asarray(Image.open(file))
        assert np.array_equal(ours.permute(1, 2, 0).numpy(), want)
    assert copy.info.official_pixels is False


def test_a_copy_of_a_copy_is_refused(tiny, tmp_path, monkeypatch, capsys):
    tiny.pixels["test"][0, 0, 0, 0] ^= 255
    lay_out(tiny, tmp_path / "copy", "parquet")
    monkeypatch.setattr(jpeg_copy, "has_official_pixels", lambda *_: False)
    monkeypatch.setattr("sys.argv", ["jpeg_copy.py", str(tmp_path / "copy"), str(tmp_path / "x")])
    with pytest.raises(SystemExit):
        jpeg_copy.main()
    assert "does not hold the official pixels" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
