"""Any picture a user may hand over, as an upright 8-bit RGB PIL image.

What a viewer does decides: EXIF rotation is applied and wide greys are scaled, not clipped. Colours
follow Pillow's `convert("RGB")`, which Hugging Face's processors use: alpha is dropped, not blended
(a transparent pixel shows the colour stored under it), palettes are looked up, CMYK is inverted
without its colour profile. Animations give their first frame.
"""

import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from resprune_jax.arguments import array_of
from resprune_jax.errors import CallError, ResPruneError, RunError
from resprune_jax.models.images.kinds import FORMATS, HEAD, kind_of, refused
from resprune_jax.models.images.pnm import LONGEST_HEADER, pnm_header, scaled, takes_long
from resprune_jax.models.images.sieve import sieve, webp_size

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray
"""A path, a PIL image, or a uint8 array (height, width), (height, width, 3) or (..., 4)."""

MAX_PIXELS = 2**27
"""Pixels of the largest image that is read, beyond any 108-megapixel camera's; it takes 1 GiB."""

MAX_SIDE = 65_535
"""Pixels of the longest side that is read: what a JPEG file can hold."""

_LIMITS = (
    f"images of up to {MAX_PIXELS} pixels and {MAX_SIDE} pixels a side are read: shrink it first"
)

_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Filters for warnings and how strict Pillow is belong to the whole process: one thread at a time
# may change them.
_FILTERS = threading.Lock()


def open_image(image: ImageLike) -> Image.Image:
    """Read a picture as an upright RGB image.

    The size is checked in the header, before any pixel is decoded: an image may have up to
    `MAX_PIXELS` pixels and `MAX_SIDE` pixels a side; a file is looked through for what would take
    time or memory without end, see `sieve`. Formats are those of `kinds.FORMATS`.

    16-bit greys (mode I;16) map 0..65535 to 0..255. 32-bit whole numbers (mode I) do the same if
    they come from a PNG or PPM file; other 32-bit whole numbers and floats (mode F) carry no
    range, so the smallest that holds all pixels is taken from 0..1 (floats only), 0..255,
    0..65535, and, where none does, darkest..brightest.

    Args:
        image: a path to a file, a PIL image (left as it is), or a uint8 array of grey
            (height, width), RGB (height, width, 3) or RGBA (height, width, 4) pixels.

    Returns:
        A new PIL image of mode RGB without metadata.

    Raises:
        CallError: no such file, a folder, an array of another shape or dtype, or a size or a file
            beyond the limits.
        RunError: a file that is empty, corrupt, truncated, or not an image in one of `FORMATS`.
    """
    if isinstance(image, Image.Image):
        name = name_of(image)
        with _reading(name):
            return _upright_rgb(image, name)
    if isinstance(image, str | os.PathLike):
        return _from_path(image)
    if isinstance(image, np.ndarray) or hasattr(image, "__array__"):
        return _from_array(np.asarray(array_of("an image", image, "number")))
    raise CallError(
        f"an image is a path, a PIL image or a uint8 array, got {type(image).__name__}: open it "
        "with PIL.Image.open first"
    )


def open_bytes(data: bytes, name: str, *, most_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a picture from the bytes of its file, as `open_image` reads the file.

    Args:
        data: the file's content.
        name: what messages call it.
        most_pixels: a limit below `MAX_PIXELS`, of the picture as its header says it.

    Raises:
        CallError: a size or a content beyond the limits.
        RunError: bytes that are none, or not those of an image in one of `FORMATS`.
    """
    if not data:
        raise RunError(f"{name} is empty (0 bytes)")
    return _decoded(io.BytesIO(data), name, most_pixels)


def check_size(width: int, height: int, name: str, most_pixels: int = MAX_PIXELS) -> None:
    """Refuse an image that is empty or too large to read in bounded memory.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        name: what the message calls it.
        most_pixels: a limit below `MAX_PIXELS`.

    Raises:
        CallError: no pixels, more than may be, or a side longer than `MAX_SIDE`.
    """
    if width < 1 or height < 1:
        raise CallError(f"{name} is {width} x {height}: it has no pixels")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise CallError(f"{name} is {width} x {height} pixels; {_LIMITS}")
    if width * height > most_pixels:
        raise CallError(
            f"{name} is {width} x {height} pixels; up to {most_pixels} are read here: shrink it"
            " first"
        )


def name_of(image: ImageLike) -> str:
    """What a message calls a picture: its path on one line, shortened, where it has one."""
    path = image if isinstance(image, str | os.PathLike) else getattr(image, "filename", None)
    if not path:
        return "the PIL image" if isinstance(image, Image.Image) else "the image array"
    text = str(path)
    return f"image {(text if len(text) <= 120 else f'{text[:56]}...{text[-56:]}')!r}"


def check_kind(given: str | os.PathLike[str]) -> None:
    """Refuse what a look at its first bytes shows to be no picture, before a model is loaded.

    Raises:
        CallError: no such file, or a folder.
        RunError: a file that is empty, cannot be read, or is not in one of `kinds.FORMATS`.
    """
    name = _named(given)
    with _opened(given, name) as file:
        _kind(file, name)


def _named(given: str | os.PathLike[str]) -> str:
    text = os.fspath(given)
    if not isinstance(text, str) or not text:
        raise CallError(f"an image path is a non-empty text, got {text!r}")
    return name_of(text)


def _opened(given: str | os.PathLike[str], name: str) -> BinaryIO:
    """Open an image file, telling apart what is not there from what is broken."""
    text = os.fspath(given)
    try:
        status = Path(text).stat()
        if stat.S_ISDIR(status.st_mode):
            raise CallError(f"{name} is a folder, expected an image file")
        if not stat.S_ISREG(status.st_mode):
            raise CallError(f"{name} is not a regular file: save the image to a file first")
        if status.st_size == 0:
            raise RunError(f"{name} is empty (0 bytes)")
        return Path(text).open("rb")
    except PermissionError as problem:
        raise RunError(f"{name} cannot be read: permission denied") from problem
    except ResPruneError:
        raise
    except (OSError, ValueError) as problem:
        link = re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text)
        hint = "; links are not fetched, download it first" if link else ""
        reason = problem.strerror if isinstance(problem, OSError) else problem
        raise CallError(f"{name} does not exist ({reason}){hint}") from problem


def _kind(file: BinaryIO, name: str) -> tuple[str, bytes]:
    """The format of a file that is open at its beginning, and its first bytes."""
    head = file.read(HEAD)
    kind, _ = kind_of(head)
    if kind is None or kind not in _formats():
        raise RunError(f"{name} {refused(head)}")
    return kind, head


def _from_path(given: str | os.PathLike[str]) -> Image.Image:
    """Read an image file."""
    name = _named(given)
    with _opened(given, name) as file:
        return _decoded(file, name)


def _decoded(file: BinaryIO, name: str, most_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a picture from a file that is open at its beginning."""
    with _reading(name):
        kind, head = _kind(file, name)
        if kind == "WEBP" and (size := webp_size(head)):
            check_size(*size, name, most_pixels)
        source = sieve(file, kind, name)
        if kind == "PPM" and (header := pnm_header(source.read(LONGEST_HEADER))):
            check_size(header[1], header[2], name, most_pixels)
            if takes_long(header):
                source.seek(0)
                return _rgb(scaled(source.read(), header), name)
        source.seek(0)
        with Image.open(source, formats=[kind]) as opened:
            return _upright_rgb(opened, name, most_pixels)


def _from_array(array: np.ndarray) -> Image.Image:
    """An RGB image from grey, RGB or RGBA pixels."""
    if array.dtype != np.uint8:
        raise CallError(
            f"an image array holds uint8 values from 0 to 255, got {array.dtype}: convert it, for "
            "values from 0 to 1 with (255 * x).round().astype(np.uint8)"
        )
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        hint = "; move the channels last with np.moveaxis(x, 0, -1)" if first else ""
        raise CallError(
            "an image array is (height, width), (height, width, 3) or (height, width, 4), got "
            f"{array.shape}{hint}"
        )
    check_size(array.shape[1], array.shape[0], name_of(array))
    colours = array if array.ndim == 2 else array[..., :3]
    return Image.fromarray(np.ascontiguousarray(colours)).convert("RGB")


def _upright_rgb(image: Image.Image, name: str, most_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image, convert it to RGB and turn it as its EXIF data says."""
    check_size(*image.size, name, most_pixels)
    image.load()
    # An icon file may hold another picture than its header says.
    check_size(*image.size, name, most_pixels)
    # TIFF files are turned while they load, so the tag is read only now.
    turn = _turn(image)
    rgb = _rgb(image, name)
    if turn is not None:
        rgb = rgb.transpose(turn)
    # Opening the result again must not turn it again.
    rgb.info = {}
    return rgb


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How to turn an image upright; a broken EXIF block turns nothing, as in a viewer."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # what a broken block raises is not documented
        return None
    return _TURNS.get(orientation) if isinstance(orientation, int) else None


def _rgb(image: Image.Image, name: str) -> Image.Image:
    """A copy of `image` in mode RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_bytes(image, name)).convert("RGB")
    # Pillow knows premultiplied alpha only as a step on the way to plain alpha.
    straight = {"RGBa": "RGBA", "La": "LA"}.get(image.mode)
    return (image.convert(straight) if straight else image).convert("RGB")


def _to_bytes(image: Image.Image, name: str) -> np.ndarray:
    """Wide grey values scaled to uint8, a few rows at a time."""
    values = np.asarray(image)
    low, high = _range(image, values, name)
    out = np.empty(values.shape, np.uint8)
    step = max(1, 2**18 // values.shape[1])
    for start in range(0, len(values), step):
        rows = values[start : start + step].astype(np.float64)
        out[start : start + step] = np.rint((rows - low) * (255 / (high - low)))
    return out


def _range(image: Image.Image, values: np.ndarray, name: str) -> tuple[float, float]:
    """The values that become 0 and 255: the documented ladder of `open_image`."""
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):
        return 0.0, 65535.0
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise RunError(f"{name} holds values that are not finite (NaN or infinite)")
    for top in (1.0, 255.0, 65535.0)[image.mode == "I" :]:
        if low >= 0 and high <= top:
            return 0.0, top
    return low, high if high > low else low + 1


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises into one line about `name`, and keep its warnings in."""
    try:
        with _FILTERS, warnings.catch_warnings(), _strictly():
            warnings.simplefilter("ignore")
            yield
    except ResPruneError:
        raise
    except Image.DecompressionBombError as problem:
        raise CallError(f"{name} has too many pixels; {_LIMITS}") from problem
    except UnidentifiedImageError as problem:
        known = ", ".join(_formats())
        raise RunError(f"{name} is not an image in a known format ({known})") from problem
    except MemoryError as problem:
        raise RunError(f"{name} could not be decoded: out of memory") from problem
    except Exception as problem:  # decoders raise anything on broken bytes
        reason = " ".join(str(problem).split()) or type(problem).__name__
        raise RunError(f"{name} cannot be read, it may be corrupt: {reason}") from problem


@contextmanager
def _strictly() -> Iterator[None]:
    """Let Pillow refuse what is cut short, whatever another library in this process told it.

    lmms-eval tells it to fill with grey what is missing of a picture.
    """
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _formats() -> list[str]:
    """Those of `kinds.FORMATS` that this build of Pillow knows."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]
