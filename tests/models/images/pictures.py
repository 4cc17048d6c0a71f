"""Small pictures, and files made of them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 13, 9

SIXTEEN = np.array([[0, 128, 129, 257], [32768, 40000, 65534, 65535]], np.uint16)


def picture(rng_seed: int = 0) -> Image.Image:
    """An RGB picture without symmetry, smooth enough for JPEG."""
    rng = np.random.default_rng(rng_seed)
    small = Image.fromarray(rng.integers(0, 256, (2, 3, 3), dtype=np.uint8))
    return small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A greyscale PNG whose header claims any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(data)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )
