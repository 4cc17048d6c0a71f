"""Pictures of every kind become upright RGB."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from resprune_jax.errors import CallError, RunError
from resprune_jax.models.images.files import FORMATS, MAX_SIDE, open_image
from tests.models.images.pictures import HEIGHT, SIXTEEN, WIDTH, picture, saved


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB" and not image.info and image.getexif().get(0x0112) is None
    return np.asarray(image)


# --- rotation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_rotation(tmp_path: Path, orientation: int, form: str) -> None:
    """As Pillow's own viewer helper turns it, from a file and from an open image, and only once."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "picture"
    options = {"lossless": True} if form == "WEBP" else {}
    path.write_bytes(saved(picture(), form, exif=exif, **options))
    with Image.open(path) as opened:
        stored = np.asarray(opened.convert("RGB"))
        upright = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
        assert (pixels(open_image(opened)) == upright).all()
    got = open_image(path)
    assert (pixels(got) == upright).all()
    assert (pixels(open_image(got)) == upright).all()
    assert got.size == ((WIDTH, HEIGHT) if orientation < 5 else (HEIGHT, WIDTH))
    if orientation > 1 and form != "TIFF":  # Pillow turns a TIFF while it loads
        assert stored.shape != upright.shape or (stored != upright).any()


def test_broken_exif_turns_nothing(tmp_path: Path) -> None:
    for block in [b"Exif\0\0garbage", b"Exif\0\0MM\0*\xff\xff\xff\xff", b""]:
        path = tmp_path / "picture.jpg"
        path.write_bytes(saved(picture(), "JPEG", exif=block))
        assert open_image(path).size == (WIDTH, HEIGHT)


# --- colour modes ---------------------------------------------------------------------------------

SCALED = np.rint(SIXTEEN / 257.0).astype(np.uint8)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, form: str) -> None:
    path = tmp_path / "grey"
    path.write_bytes(saved(Image.fromarray(SIXTEEN), form))
    with Image.open(path) as opened:
        assert opened.mode.startswith("I;16")
    got = pixels(open_image(path))
    assert (got == SCALED[..., None]).all()
    # A dark picture stays dark: the range is that of the format, not of the picture.
    path.write_bytes(saved(Image.fromarray(SIXTEEN // 256), form))
    assert pixels(open_image(path)).max() == 1


def test_sixteen_bits_big_endian(tmp_path: Path) -> None:
    path = tmp_path / "grey.pgm"
    path.write_bytes(b"P5 4 2 65535\n" + SIXTEEN.astype(">u2").tobytes())
    assert (pixels(open_image(path)) == SCALED[..., None]).all()
    big = Image.frombytes("I;16B", (4, 2), SIXTEEN.astype(">u2").tobytes())
    assert (pixels(open_image(big)) == SCALED[..., None]).all()


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.array([[0, 7, 255]], np.int32), [0, 7, 255]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[-100, 0, 155]], np.int32), [0, 100, 255]),
        (np.array([[0, 2**30, 2**31 - 1]], np.int32), [0, 128, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 7.4, 200]], np.float32), [0, 7, 200]),
        (np.array([[0, 32767.5, 60000]], np.float32), [0, 128, 233]),
        (np.array([[-1, 0, 1]], np.float32), [0, 128, 255]),
        (np.array([[-3, -3, -3]], np.float32), [0, 0, 0]),
    ],
)
def test_wide_values_take_the_smallest_range(values: np.ndarray, wanted: list[int]) -> None:
    image = Image.fromarray(values)
    assert image.mode == ("I" if values.dtype == np.int32 else "F")
    assert pixels(open_image(image))[0, :, 1].tolist() == wanted


def test_wide_rows_in_several_strips() -> None:
    """Scaling by strips equals scaling at once."""
    values = np.random.default_rng(0).integers(0, 65536, (700, 1500)).astype(np.uint16)
    got = pixels(open_image(Image.fromarray(values)))
    assert (got[..., 0] == np.rint(values / 257.0)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(value: float) -> None:
    image = Image.fromarray(np.array([[0.5, value]], np.float32))
    with pytest.raises(RunError, match="not finite"):
        open_image(image)


MODES = [
    *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"),
    *("LAB", "I", "F", "I;16", "I;16L", "I;16B"),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(1, 1), (3, 2)])
def test_every_mode(mode: str, size: tuple[int, int]) -> None:
    assert open_image(Image.new(mode, size)).size == size


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        ("1", "PNG"),
        ("L", "PNG"),
        ("LA", "PNG"),
        ("RGBA", "PNG"),
        ("P", "GIF"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("L", "JPEG"),
        ("RGB", "BMP"),
        ("RGBA", "WEBP"),
        ("RGB", "PPM"),
        ("RGB", "AVIF"),
    ],
)
def test_colours_are_those_of_convert(tmp_path: Path, mode: str, form: str) -> None:
    """As Hugging Face's processors convert; every format of the list that Pillow writes."""
    assert form in FORMATS
    path = tmp_path / "picture"
    alpha = Image.linear_gradient("L").resize((WIDTH, HEIGHT))
    image = picture()
    if mode in ("LA", "RGBA"):
        image.putalpha(alpha)
    path.write_bytes(saved(image.convert(mode), form))
    with Image.open(path) as opened:
        wanted = np.asarray(opened.convert("RGB"))
    assert (pixels(open_image(path)) == wanted).all()
    assert wanted.std() > 1


def test_alpha_is_dropped() -> None:
    clear = Image.new("RGBA", (2, 1), (10, 200, 30, 0))
    assert (pixels(open_image(clear)) == (10, 200, 30)).all()
    half = Image.new("RGBa", (1, 1), (50, 100, 10, 128))
    assert pixels(open_image(half)).tolist() == [[[99, 199, 19]]]


def test_a_palette_with_transparency(tmp_path: Path) -> None:
    """Transparency of one entry, and of all entries, which makes Pillow warn."""
    image = picture().quantize(8)
    wanted = np.asarray(image.convert("RGB"))
    for transparency in (0, bytes(range(0, 256, 32))):
        path = tmp_path / "picture.png"
        image.save(path, transparency=transparency)
        assert (pixels(open_image(path)) == wanted).all()


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    path = tmp_path / "picture.gif"
    first, second = Image.new("RGB", (4, 3), "red"), Image.new("RGB", (4, 3), "blue")
    first.save(path, save_all=True, append_images=[second])
    assert (pixels(open_image(path)) == (255, 0, 0)).all()


# --- arrays ---------------------------------------------------------------------------------------


def test_arrays() -> None:
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
    assert (pixels(open_image(rgba)) == rgba[..., :3]).all()
    assert (pixels(open_image(rgba[..., :3])) == rgba[..., :3]).all()
    assert (pixels(open_image(rgba[..., 0])) == rgba[..., :1]).all()
    turned = rgba[::-1, :, 2::-1]  # negative strides
    assert (pixels(open_image(turned)) == turned).all()
    assert open_image(np.zeros((1, 1), np.uint8)).size == (1, 1)
    kept = rgba.copy()
    open_image(rgba[..., :3]).putpixel((0, 0), (1, 2, 3))
    assert (rgba == kept).all(), "the result is a copy"


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((4, 4, 3), np.float32), "uint8 values from 0 to 255, got float32: convert"),
        (np.zeros((4, 4), np.uint16), "got uint16"),
        (np.zeros((4, 4), bool), "got bool"),
        (np.array([["a"]], object), "got a ndarray of other things"),
        (np.zeros((3, 8, 8), np.uint8), r"got \(3, 8, 8\); move the channels last"),
        (np.zeros((8, 8, 2), np.uint8), r"got \(8, 8, 2\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"got \(2, 8, 8, 3\)"),
        (np.zeros(8, np.uint8), r"got \(8,\)"),
        (np.zeros((0, 8), np.uint8), "8 x 0: it has no pixels"),
        (np.broadcast_to(np.uint8(0), (MAX_SIDE + 1, 1)), "1 x 65536 pixels; images of up to"),
        (np.broadcast_to(np.uint8(0), (60000, 60000, 3)), "60000 x 60000 pixels"),
    ],
)
def test_wrong_arrays(array: np.ndarray, reason: str) -> None:
    with pytest.raises(CallError, match=reason):
        open_image(array)
