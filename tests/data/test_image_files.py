"""What a file means, whoever reads it: pixel values of every kind, and damage of every kind."""

import io
import os
import random
import struct
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvattn.data.image_files import (
    ImageError,
    check_quickly,
    cut,
    image_files,
    is_hidden,
    left_out,
    read_picture,
    size_of,
)
from cvattn.data.sequences.line_files import read_line
from cvattn.inference.images import read_image

H, W = 7, 5


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(6).integers(0, 256, shape, dtype=np.uint8)


def read_by_all(path: Path) -> dict[str, np.ndarray]:
    """The file as training, prediction and lines get it, (C, H, W)."""
    found = {f"training {c}": cut(read_picture(path, c), (H, W)) for c in (1, 3)}
    found |= {f"prediction {c}": read_image(path, c, (H, W))[0] for c in (1, 3)}
    return found | {"lines 1": read_line(path, H)[None]}


def check(path: Path, want: np.ndarray, most: int = 0) -> None:
    """``want``: (H, W) or (H, W, 3); ``most``: off, where a format is lossy."""
    grey = want if want.ndim == 2 else np.asarray(Image.fromarray(want).convert("L"))
    colour = np.dstack([want] * 3) if want.ndim == 2 else want
    for reader, pixels in read_by_all(path).items():
        expected = grey[None] if reader.endswith("1") else colour.transpose(2, 0, 1)
        assert np.abs(pixels.astype(int) - expected).max() <= most, reader


def kinds() -> dict:
    """name -> (image, options of save, pixels that are meant)."""
    rgb, grey = noise(H, W, 3), noise(H, W)
    alpha = noise(H, W, 2)[..., 0]
    alpha[0] = [0, 255, 1, 254, 128]
    share = alpha[..., None] / 255
    on_white = rgb * share + 255 * (1 - share)
    inks = Image.fromarray(noise(H, W, 4), "CMYK")
    c, m, y, k = (np.asarray(inks).astype(int)[..., i] for i in range(4))
    light = np.dstack([(255 - ink) * (255 - k) / 255 for ink in (c, m, y)])
    palette = Image.fromarray(rgb).quantize(11)
    listed = np.asarray(palette.convert("RGB"))
    clear = np.asarray(palette) == 4
    deep = grey.astype(np.uint16) * 257
    first, second = Image.fromarray(rgb), Image.fromarray(255 - rgb)
    moving = {"save_all": True, "append_images": [second], "duration": 50}
    tags = {n: Image.Exif() for n in range(2, 9)}
    for n, tag in tags.items():
        tag[0x0112] = n
    # What each tag says was done to the upright picture, undone by these (Exif 2.3, 4.6.4).
    stored = {
        2: rgb[:, ::-1],
        3: rgb[::-1, ::-1],
        4: rgb[::-1],
        5: rgb.transpose(1, 0, 2),
        6: np.rot90(rgb, 1),
        7: np.rot90(rgb, 2).transpose(1, 0, 2),
        8: np.rot90(rgb, -1),
    }
    return {
        "rgb.png": (Image.fromarray(rgb), {}, rgb),
        "grey.png": (Image.fromarray(grey), {}, grey),
        "grey.pgm": (Image.fromarray(grey), {}, grey),
        "rgb.bmp": (Image.fromarray(rgb), {}, rgb),
        "rgb.tif": (Image.fromarray(rgb), {"compression": "tiff_lzw"}, rgb),
        "exact.webp": (Image.fromarray(rgb), {"lossless": True}, rgb),
        "bit.png": (Image.fromarray(grey > 99), {}, np.uint8(grey > 99) * 255),
        "bit.tif": (
            Image.fromarray(grey > 99),
            {"compression": "group4"},
            np.uint8(grey > 99) * 255,
        ),
        "palette.png": (palette, {}, listed),
        "palette.gif": (palette, {}, listed),
        "cmyk.tif": (inks, {}, light),
        "deep.png": (Image.fromarray(deep), {}, grey),
        "deep.tif": (Image.fromarray(deep), {}, grey),
        "low bits.png": (Image.fromarray(deep & 0xFF00 | 0x7F), {}, grey),
        "deep.pgm": (Image.fromarray(deep), {}, grey),
        "rgba.png": (Image.fromarray(np.dstack([rgb, alpha])), {}, on_white),
        "rgba.webp": (
            Image.fromarray(np.dstack([rgb, alpha])),
            {"lossless": True, "exact": True},
            on_white,
        ),
        "rgba.tif": (Image.fromarray(np.dstack([rgb, alpha])), {}, on_white),
        "la.png": (
            Image.fromarray(np.dstack([grey, alpha]), "LA"),
            {},
            grey * share[..., 0] + 255 * (1 - share[..., 0]),
        ),
        "clear colour.png": (palette, {"transparency": 4}, np.where(clear[..., None], 255, listed)),
        "clear colour.gif": (palette, {"transparency": 4}, np.where(clear[..., None], 255, listed)),
        "clear grey.png": (
            Image.fromarray(grey),
            {"transparency": int(grey[2, 3])},
            np.where(grey == grey[2, 3], 255, grey),
        ),
        "clear deep.png": (
            Image.fromarray(deep),
            {"transparency": int(deep[2, 3])},
            np.where(deep == deep[2, 3], 255, grey),
        ),
        "opaque.png": (Image.fromarray(np.dstack([rgb, np.full_like(grey, 255)])), {}, rgb),
        "moving.png": (first, moving, rgb),
        "moving.webp": (first, moving | {"lossless": True}, rgb),
        "moving.tif": (first, moving, rgb),
        "moving.gif": (palette, {"save_all": True, "append_images": [second]}, listed),
        **{
            f"turned {n}.{suffix}": (Image.fromarray(pixels.copy()), {"exif": tags[n]}, rgb)
            for n, pixels in stored.items()
            for suffix in ("png", "tif")
        },
        "other name.jpg": (Image.fromarray(rgb), {"format": "PNG"}, rgb),
    }


@pytest.mark.parametrize("name", kinds())
def test_a_file_means_the_same_to_training_prediction_and_lines(tmp_path, name):
    image, options, want = kinds()[name]
    image.save(tmp_path / name, **options)
    exact = np.array_equal(want, np.round(want)) and want.dtype == np.uint8
    check(tmp_path / name, np.round(want).astype(np.uint8), most=0 if exact else 1)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpegs_of_every_mode(tmp_path, mode):
    smooth = np.add.outer(np.arange(H) * 20, np.arange(W) * 18).astype(np.uint8)
    image = Image.fromarray(smooth).convert("RGB").convert(mode)
    image.save(tmp_path / "a.jpg", quality=98)
    check(tmp_path / "a.jpg", smooth, most=4)


def test_a_photograph_with_a_second_picture_in_it_is_the_first(tmp_path):
    smooth = np.add.outer(np.arange(H) * 20, np.arange(W) * 18).astype(np.uint8)
    second = Image.fromarray(255 - smooth).convert("RGB")
    Image.fromarray(smooth).convert("RGB").save(
        tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second], quality=98
    )
    check(tmp_path / "a.jpg", smooth, most=4)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_logos_of_any_ink_can_be_seen(tmp_path, mode):
    """Whatever colour lies under what is transparent."""
    ink_at = np.zeros((H, W), bool)
    ink_at[1:3, 1:4] = True
    for ink, ground in ((0, 255), (90, 255), (255, 0), (245, 0)):
        for under in (0, 255):
            grey = np.where(ink_at, ink, under).astype(np.uint8)
            alpha = np.uint8(ink_at) * 255
            alpha[2, 2] = 128  # an edge that is half there
            if mode == "P":
                image = Image.fromarray(np.uint8(ink_at), "P")
                image.putpalette([under] * 3 + [ink] * 3)
                image.save(tmp_path / "logo.png", transparency=0)
                half = ink
            else:
                layers = [grey, alpha] if mode == "LA" else [grey, grey, grey, alpha]
                Image.fromarray(np.dstack(layers), mode).save(tmp_path / "logo.png")
                half = round(ink * 128 / 255 + ground * 127 / 255)
            want = np.where(ink_at, ink, ground).astype(np.uint8)
            want[2, 2] = half
            check(tmp_path / "logo.png", want, most=1)


def test_what_is_wholly_transparent_is_white(tmp_path):
    Image.fromarray(noise(H, W, 4) & np.array([255, 255, 255, 0], np.uint8)).save(
        tmp_path / "a.png"
    )
    check(tmp_path / "a.png", np.full((H, W), 255, np.uint8))


@pytest.mark.parametrize(("mode", "why"), [("F", "floating-point"), ("I", "32-bit")])
def test_pixels_of_no_fixed_range_are_refused(tmp_path, mode, why):
    Image.fromarray(noise(H, W)).convert(mode).save(tmp_path / "a.tif")
    for reader in (lambda p: read_picture(p, 1), lambda p: read_picture(p, 3)):
        with pytest.raises(ImageError, match=f"{why} pixels have no fixed range; save it with 8"):
            reader(tmp_path / "a.tif")


@pytest.mark.parametrize("form", ["EPS", "PDF", "ICO", "TGA", "JPEG2000"])
def test_other_formats_are_not_opened_whatever_they_are_called(tmp_path, form, monkeypatch):
    """An EPS would be handed to Ghostscript: a program is put where it would be found."""
    called = tmp_path / "called"
    gs = tmp_path / "gs"
    gs.write_text(f"#!/bin/sh\necho 10.0\ntouch {called}\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    Image.fromarray(noise(H, W, 3)).save(tmp_path / "evil.png", form)
    with pytest.raises(ImageError, match=r"not an image, or .*; read are JPEG"):
        read_picture(tmp_path / "evil.png", 3)
    assert not called.exists()


def samples() -> dict[str, bytes]:
    """A file of each format, with EXIF where it can have some."""
    smooth = np.add.outer(np.arange(23) * 9, np.arange(19) * 3).astype(np.uint8)
    image = Image.fromarray(np.dstack([smooth, smooth[::-1], noise(23, 19)]))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "a camera"
    exif[0x9003] = "2026:11:25 12:00:00"
    exif.get_ifd(0x8769)[0x9000] = b"0230"
    found = {}
    for form, options in {
        "JPEG": {"exif": exif},
        "PNG": {"exif": exif},
        "WEBP": {"exif": exif, "lossless": True},
        "TIFF": {"exif": exif},
        "GIF": {},
        "BMP": {},
        "PPM": {},
    }.items():
        file = io.BytesIO()
        image.save(file, form, **options)
        found[form] = file.getvalue()
    file = io.BytesIO()
    image.save(file, "TIFF", compression="tiff_lzw")
    return found | {"TIFF lzw": file.getvalue()}


@pytest.mark.filterwarnings("ignore")  # Pillow has its own words for some of it
@pytest.mark.parametrize("form", samples())
def test_damage_gives_pixels_or_a_reason_and_never_another_error(tmp_path, form):
    good = samples()[form]
    rng = random.Random(f"20261125 {form}")
    damaged = [good[:size] for size in range(0, len(good), max(1, len(good) // 60))]
    for _ in range(300):
        bad = bytearray(good)
        for _ in range(rng.choice((1, 1, 3))):
            # Mostly in the headers, where structure is.
            place = rng.randrange(min(len(bad), 400 if rng.random() < 0.8 else len(bad)))
            bad[place] = rng.choice((0, 255, bad[place] ^ 1 << rng.randrange(8)))
        damaged.append(bytes(bad))
    reasons = []
    path = tmp_path / "a.png"
    for content in damaged:
        path.write_bytes(content)
        try:
            picture = read_picture(path, 3)
            if max(picture.size) < 3000:
                cut(picture, (8, 8))
        except ImageError as error:
            reasons.append(str(error))
    assert len(reasons) > 20
    assert all(reasons)


def exif_jpeg(orientation: bytes) -> bytes:
    """A JPEG whose EXIF has one entry, given as it stands in the file."""
    file = io.BytesIO()
    Image.fromarray(noise(8, 8)).save(file, "JPEG")
    tiff = b"MM\0*\0\0\0\x08" + struct.pack(">H", 1) + orientation + bytes(4)
    segment = b"Exif\0\0" + tiff
    return (
        file.getvalue()[:2]
        + b"\xff\xe1"
        + struct.pack(">H", len(segment) + 2)
        + segment
        + (file.getvalue()[2:])
    )


BROKEN_EXIF = {
    "two values": struct.pack(">HHIHH", 0x0112, 3, 2, 6, 6),
    "text": struct.pack(">HHI4s", 0x0112, 2, 4, b"six\0"),
    "no value": struct.pack(">HHII", 0x0112, 3, 0, 0),
    "a fraction of nothing": struct.pack(">HHII", 0x0112, 5, 1, 0),
    "a type that is none": struct.pack(">HHII", 0x0112, 99, 1, 6),
    "far away": struct.pack(">HHII", 0x0112, 4, 1 << 30, 0x7FFFFFFF),
    "9": struct.pack(">HHIHH", 0x0112, 3, 1, 9, 0),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BROKEN_EXIF)
def test_broken_exif_gives_the_picture_or_a_reason(tmp_path, name):
    (tmp_path / "a.jpg").write_bytes(exif_jpeg(BROKEN_EXIF[name]))
    with suppress(ImageError):
        assert read_picture(tmp_path / "a.jpg", 1).size == (8, 8)


@pytest.mark.parametrize(
    "error",
    [
        *(
            struct.error("x"),
            TypeError("x"),
            IndexError("x"),
            ZeroDivisionError("x"),
            EOFError("x"),
        ),
        *(
            EOFError("x"),
            SyntaxError("x"),
            MemoryError(),
            OSError("x"),
            KeyError("x"),
            RecursionError("x"),
        ),
        *(Image.DecompressionBombError("x"), AttributeError("x"), OverflowError()),
    ],
)
def test_whatever_a_decoder_raises_is_a_reason(tmp_path, monkeypatch, error):
    Image.fromarray(noise(H, W)).save(tmp_path / "a.png")

    def fail(image):
        raise error

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", fail)
    with pytest.raises(ImageError, match=str(error) or type(error).__name__):
        read_picture(tmp_path / "a.png", 3)


def test_an_image_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.fromarray(noise(H, W)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="decompression bomb"):
        read_picture(tmp_path / "a.png", 3)


def test_a_thin_picture_is_cut_or_refused():
    thin = Image.new("L", (3000, 1))
    for size in ((1, 1), (900, 1), (1, 3000), (2, 7)):
        with suppress(ImageError):
            assert cut(thin, size).shape == (1, *size)


HIDDEN = [".ipynb_checkpoints", "@eaDir", "__MACOSX", ".thumbnails", "#recycle", "$RECYCLE.BIN"]


def test_hidden_and_system_folders_and_files_are_passed_over_and_listed(tmp_path):
    root = tmp_path / ".cache" / "@eaDir"  # where the folder itself lies is the user's business
    picture = Image.fromarray(noise(H, W))

    def save(*parts: str) -> Path:
        path = root.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, "PNG")
        return path

    seen = [save("b.png"), save("deep", "er", "a.JPG"), save("@home", "x.png"), save("__x.png")]
    left = [save(name, "a.png") for name in HIDDEN]
    left += [save("deep", name, "more", "a.png") for name in HIDDEN]
    left += [save("._b.png"), save("deep", ".c.jpg")]
    save("Thumbs.db"), save("notes.txt")
    (root / "linked").symlink_to(root / "deep")
    (root / "a folder.png").mkdir()
    found = image_files(root)
    assert found.paths == sorted(seen)
    assert found.left == sorted([*left, root / "linked"])
    assert all(map(is_hidden, HIDDEN))


@pytest.mark.skipif(sys.platform == "win32", reason="no such permissions")
def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything
    with pytest.raises(PermissionError, match="locked"):
        image_files(tmp_path)


def test_what_is_left_out_is_said_on_one_line():
    assert left_out([]) == ""
    said = left_out([Path("a/\x1b[31m\n/.b.png"), Path("c")])
    assert (
        said == "not read, because hidden, linked or of no class: 2, such as a/\\x1b[31m\\n/.b.png"
    )


def saved(path, **options):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8))
    picture.save(path, **options)
    return path


KINDS = [".jpg", ".png", ".bmp", ".gif", ".webp", ".tif", ".ppm"]


@pytest.mark.parametrize("suffix", KINDS)
def test_a_quick_check_finds_what_was_cut_short_in_every_format(tmp_path, suffix):
    path = saved(tmp_path / f"a{suffix}")
    check_quickly(path)
    content = path.read_bytes()
    for size in (0, 3, len(content) // 3, len(content) - 100):
        path.write_bytes(content[:size])
        with pytest.raises(ImageError):
            check_quickly(path)
    with pytest.raises(ImageError, match="no such file"):
        check_quickly(tmp_path / "none.png")


@pytest.mark.parametrize("suffix", KINDS)
def test_a_quick_check_takes_what_can_be_read(tmp_path, suffix, monkeypatch):
    path = saved(tmp_path / f"a{suffix}")
    with path.open("ab") as file:
        file.write(bytes(10_000))  # as some cameras and programs append
    read_picture(path, 3)
    check_quickly(path)
    check_quickly(io.BytesIO(path.read_bytes()))


def test_a_quick_check_decodes_no_whole_jpeg_or_png(tmp_path, monkeypatch):
    paths = [saved(tmp_path / "a.jpg"), saved(tmp_path / "a.png")]
    monkeypatch.setattr("cvattn.data.image_files.as_seen", lambda *_: pytest.fail("decoded"))
    for path in paths:
        check_quickly(path)


@pytest.mark.parametrize(("orientation", "size"), [(1, (60, 90)), (3, (60, 90)), (6, (90, 60))])
def test_the_size_is_that_of_the_upright_picture(tmp_path, orientation, size):
    exif = Image.Exif()
    exif[274] = orientation
    path = saved(tmp_path / "a.jpg", exif=exif)
    assert size_of(path) == size == read_picture(path, 3).size[::-1]


def test_a_picture_is_read_from_memory_as_from_its_file(tmp_path):
    path = saved(tmp_path / "a.png")
    found = read_picture(io.BytesIO(path.read_bytes()), 3)
    assert np.array_equal(np.asarray(found), np.asarray(read_picture(path, 3)))
