"""PBM, PGM and PPM files: their header, and the pixels that Pillow would read one by one."""

import mmap
import re

import numpy as np
from PIL import Image

LONGEST_HEADER = 2**20
"""Bytes within which a header must end, comments included."""

_TOKEN = re.compile(rb"(?:[ \t\n\x0b\x0c\r]|#[^\r\n]*[\r\n])*([^ \t\n\x0b\x0c\r#]+)")


def pnm_header(data: bytes | mmap.mmap) -> tuple[int, int, int, int, int] | None:
    """What stands before the pixels.

    Args:
        data: a file that begins with P1 to P6.

    Returns:
        (the digit, width, height, the largest value, where the pixels begin), or None where these
        are not whole numbers within the first `LONGEST_HEADER` bytes.
    """
    digit = data[1] - ord("0")
    at, found, end = 2, [], min(len(data), LONGEST_HEADER)
    for _ in range(2 if digit in (1, 4) else 3):
        token = _TOKEN.match(data, at, end)
        if token is None or not token[1].isdigit() or len(token[1]) > 9 or token.end() == end:
            return None
        at = token.end()
        found.append(int(token[1]))
    width, height, top = (*found, 1)[:3]
    return digit, width, height, top, at + 1


def takes_long(header: tuple[int, int, int, int, int]) -> bool:
    """Whether Pillow would read a binary file with this header one sample after the other."""
    digit, _, _, top, _ = header
    quick = {5: (255, 65535), 6: (255,)}
    return digit in quick and top not in quick[digit] and 0 < top < 65536


def scaled(data: bytes, header: tuple[int, int, int, int, int]) -> Image.Image:
    """The picture of a binary file of which `takes_long` is true.

    Args:
        data: the file.
        header: what `pnm_header` says of it; its size was checked.

    Returns:
        The picture as Pillow makes it: greys of two bytes as 0..65535, else 8 bits.

    Raises:
        ValueError: a file that ends too early.
    """
    digit, width, height, top, begin = header
    channels = 3 if digit == 6 else 1
    values = np.frombuffer(data, ">u2" if top > 255 else "u1", width * height * channels, begin)
    most = 65535 if digit == 5 and top > 255 else 255
    # Pillow divides first; other orders round some values differently.
    table = np.rint(np.arange(65536 if top > 255 else 256) / top * most).clip(max=most)
    pixels = table.astype(np.uint16 if most > 255 else np.uint8)[values]
    shape = (height, width, channels) if channels == 3 else (height, width)
    return Image.fromarray(pixels.reshape(shape))
