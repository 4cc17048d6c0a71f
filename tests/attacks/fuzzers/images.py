"""Picture files of every format: mutated, cut, with headers and metadata beyond all bounds."""

import functools
import io
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from resprune_jax.models.images.files import MAX_PIXELS, open_image
from tests.attacks.harness import WRONG, Fault, Fuzzer, draw

NAME = "images"
FORMS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
OTHERS = ("JPEG2000", "PCX", "TGA", "ICO", "QOI", "DDS", "SGI", "PDF", "EPS", "SPIDER", "IM", "MSP")
LONG = 30_000_000

Maker = Callable[[np.random.Generator], bytes]


@functools.cache
def seeds() -> list[tuple[str, bytes]]:
    """(format, file) of a picture in every format and in many of their variants."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (37, 53, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    more = {"save_all": True, "append_images": [picture.rotate(9 * i) for i in range(3)]}
    asked: list[tuple[str, Image.Image, dict[str, object]]] = [
        *((form, picture, {}) for form in FORMS),
        *((form, picture, {"exif": turned}) for form in ("PNG", "JPEG", "WEBP", "TIFF")),
        *((form, picture, more) for form in ("PNG", "GIF", "WEBP", "TIFF", "AVIF")),
        *(("TIFF", picture, {"compression": f"tiff_{how}"}) for how in ("lzw", "deflate")),
        ("TIFF", picture, {"compression": "jpeg"}),
        ("JPEG", picture, {"progressive": True}),
        ("JPEG", picture.convert("CMYK"), {}),
        ("WEBP", picture, {"lossless": True}),
        ("PNG", picture.quantize(8), {"transparency": bytes(8)}),
        ("PNG", picture.convert("1"), {}),
        ("BMP", picture.convert("P"), {}),
        ("PPM", picture.convert("L"), {}),
        ("PPM", picture.convert("1"), {}),
        ("GIF", picture.convert("P"), {"comment": b"x" * 700, "interlace": 1}),
    ]
    made = []
    for form, image, options in asked:
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        made.append((form, buffer.getvalue()))
    made += [("PPM", b"P6 5 4 1000\n" + bytes(120)), ("PPM", b"P3 2 2 9\n" + b"1 " * 12)]
    return made


@functools.cache
def others() -> list[bytes]:
    """Files of formats that are refused by name, as far as they can be made here."""
    picture = Image.new("RGB", (40, 30), "orange")
    made = [b"qoif" + bytes(40), b"SIMPLE  =" + bytes(80), b"#!/bin/sh\n", b"\0" * 2000]
    for form in OTHERS:
        for mode in ("RGB", "L", "F", "1"):
            buffer = io.BytesIO()
            try:
                picture.convert(mode).save(buffer, form)
            except (OSError, KeyError, ValueError):
                continue
            made.append(buffer.getvalue())
    return made


def _seed(rng: np.random.Generator, *forms: str) -> bytes:
    fits = [content for form, content in seeds() if not forms or form in forms]
    return fits[rng.integers(len(fits))]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _size(rng: np.random.Generator, most: int = LONG) -> int:
    return int(np.exp(rng.uniform(0, np.log(most))))


def _changed(rng: np.random.Generator) -> bytes:
    """A few bytes overwritten, mostly in the header."""
    body = bytearray(_seed(rng))
    for _ in range(rng.integers(1, 9)):
        reach = len(body) if rng.random() < 0.4 else min(len(body), 64)
        at = int(rng.integers(reach))
        new = bytes(rng.integers(0, 256, rng.integers(1, 5), dtype=np.uint8))
        if rng.random() < 0.4:
            new = [b"\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0"][rng.integers(4)]
        body[at : at + len(new)] = new
    return bytes(body)


def _cut(rng: np.random.Generator) -> bytes:
    body = _seed(rng)
    return body[: rng.integers(1, len(body))]


def _spliced(rng: np.random.Generator) -> bytes:
    one, two = _seed(rng), _seed(rng)
    return one[: rng.integers(1, len(one))] + two[rng.integers(len(two)) :]


def _repeated(rng: np.random.Generator) -> bytes:
    """A piece of a file over and over."""
    body = _seed(rng)
    begin = int(rng.integers(len(body)))
    piece = body[begin : begin + int(rng.integers(1, 200))]
    return body[:begin] + piece * (_size(rng) // len(piece) + 1) + body[begin:]


def _foreign(rng: np.random.Generator) -> bytes:
    body = others()[rng.integers(len(others()))]
    return body if rng.random() < 0.5 else body[: rng.integers(1, len(body) + 1)]


def _noise(rng: np.random.Generator) -> bytes:
    head = _seed(rng)[: rng.integers(0, 40)]
    return head + bytes(rng.integers(0, 256, _size(rng, 20_000), dtype=np.uint8))


def _png(rng: np.random.Generator) -> bytes:
    """Metadata and animation without end, headers of any size."""
    body = _seed(rng, "PNG")
    packed = zlib.compress(bytes(_size(rng)), 1)
    text = [
        lambda: _chunk(b"zTXt", b"a\0\0" + packed),
        lambda: _chunk(b"iTXt", b"a\0\1\0\0\0" + packed),
        lambda: _chunk(b"tEXt", b"a\0" + bytes(_size(rng))),
        lambda: _chunk(b"iCCP", b"a\0\0" + packed),
        lambda: _chunk(b"eXIf", bytes(_size(rng))),
        lambda: _chunk(b"acTL", struct.pack(">II", *rng.integers(0, 2**31, 2))),
        lambda: _chunk(b"prIv", b""),
    ][rng.integers(7)]()
    text *= _size(rng, max(2, LONG // len(text)))
    at = 33 if rng.random() < 0.7 else len(body) - 12
    body = body[:at] + text + body[at:]
    if rng.random() < 0.3:
        width, height = (int(value) for value in rng.integers(0, 2**18, 2))
        start = _chunk(b"IHDR", struct.pack(">II", width, height) + body[24:29])
        body = body[:8] + start + body[33:]
    return body


def _jpeg(rng: np.random.Generator) -> bytes:
    """Segments, fill bytes and scans without end, and other sizes."""
    body = _seed(rng, "JPEG")
    kind = rng.integers(4)
    if kind == 0:
        mark = [b"\xff\xfe", b"\xff\xe1", b"\xff\xe2", b"\xff\xed", b"\xff\xdb"][rng.integers(5)]
        name = [b"", b"Exif\0\0", b"ICC_PROFILE\0\1\1", b"Photoshop 3.0\0", b"MPF\0"]
        piece = name[rng.integers(5)] + bytes(int(rng.integers(0, 60_000)))
        segment = mark + struct.pack(">H", len(piece) + 2) + piece
        return body[:2] + segment * _size(rng, max(2, LONG // len(segment))) + body[2:]
    if kind == 1:
        return body[:2] + b"\xff" * _size(rng) + body[2:]
    if kind == 2:
        at = body.rfind(b"\xff\xda")
        junk = b"" if rng.random() < 0.7 else b"junk"
        return body[:-2] + junk + body[at:-2] * _size(rng, 3000) + body[-2:]
    at = max(body.find(b"\xff\xc0"), body.find(b"\xff\xc2"))
    size = struct.pack(">HH", *rng.integers(0, 2**16, 2))
    return body[: at + 5] + size + body[at + 9 :]


def _gif(rng: np.random.Generator) -> bytes:
    body = _seed(rng, "GIF")
    at = 13 + (3 << (body[10] & 7) + 1 if body[10] & 0x80 else 0)
    count = int(rng.integers(1, 256))
    block = bytes((count,)) + b"c" * count
    label = [b"\x21\xfe", b"\x21\xff", b"\x21\xf9", b"\x21\x01"][rng.integers(4)]
    if rng.random() < 0.5:
        extra = label + block * _size(rng, LONG // len(block)) + b"\0"
    else:
        extra = (label + block + b"\0") * _size(rng, LONG // (len(block) + 3))
    if rng.random() < 0.3:
        extra = b"\x2c" + struct.pack("<HHHH", *rng.integers(0, 2**16, 4)) + b"\0\2\1\0\0"
        extra *= _size(rng, 300_000)
        at = len(body) - 1
    return body[:at] + extra + body[at:]


def _tiff(rng: np.random.Generator) -> bytes:
    """A directory whose entries hold any number of values, anywhere."""
    entries = {256: (4, 1, 60), 257: (4, 1, 40), 258: (3, 1, 8), 262: (3, 1, 1), 277: (3, 1, 1)}
    entries[259] = (3, 1, int(rng.choice([1, 5, 7, 8, 32773, 50000])))
    entries |= {273: (4, 1, 300), 278: (4, 1, 40), 279: (4, 1, 2400)}
    if rng.random() < 0.3:
        entries |= {322: (4, 1, _size(rng, 2**17)), 323: (4, 1, _size(rng, 2**17))}
        entries |= {324: (4, 1, 300), 325: (4, 1, 2400)}
    for _ in range(rng.integers(0, 4)):
        tag = int(rng.choice([*entries, 320, 330, 347, 700, 34665, 34675, 33432, 40000]))
        kind, count = int(rng.integers(0, 19)), _size(rng, 2**32 - 1)
        entries[tag] = (kind, count, int(rng.integers(0, 4000)))
    many = sorted(entries.items()) * (1 if rng.random() < 0.9 else 200)
    head = b"II*\0" + struct.pack("<IH", 8, len(many))
    body = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in many)
    return head + body + bytes(4) + bytes(_size(rng))


def _bmp(rng: np.random.Generator) -> bytes:
    """Run lengths and palettes."""
    width, height = (_size(rng, 2**16) for _ in range(2))
    kind, bits = int(rng.integers(0, 4)), int(rng.choice([1, 4, 8, 16, 24, 32]))
    colours = _size(rng, 2**32 - 1) if rng.random() < 0.3 else 256
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, kind, 0, 0, 0, colours, 0)
    pairs = [b"\1\0", b"\xff\1", b"\0\0", b"\0\2\xff\xff", b"\0\1"][rng.integers(5)]
    body = bytes(1024) + pairs * (_size(rng) // len(pairs))
    return b"BM" + struct.pack("<IHHI", 54 + len(body), 0, 0, 54 + 1024) + head + body


def _pnm(rng: np.random.Generator) -> bytes:
    width, height = (_size(rng, 2**13) for _ in range(2))
    top = [b"255", b"1", b"254", b"65535", b"1000", b"0", b"99999", b"-1"][rng.integers(8)]
    filler = [b" ", b"#" + b"x" * _size(rng) + b"\n", b"\n" * _size(rng), b"\t"][rng.integers(4)]
    kind = int(rng.integers(0, 8))
    head = b"P%d" % kind + filler + b"%d %d " % (width, height)
    body = b"" if kind in (1, 4) else top + b"\n"
    if rng.random() < 0.2:
        body += b"# " + bytes(_size(rng)) + b"\n"
    unit = [b"1 ", b"\0", b"12345678901", b"#"][rng.integers(4)]
    return head + body + unit * min(width * height * 3, LONG // len(unit))


def _boxes(rng: np.random.Generator) -> bytes:
    """RIFF and ISO boxes with other lengths."""
    body = bytearray(_seed(rng, "WEBP", "AVIF"))
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(body) - 4))
        names = [i for i in range(len(body) - 4) if body[i : i + 4].isalpha()][:40]
        if names and rng.random() < 0.7:
            at = names[rng.integers(len(names))] + int(rng.choice([-4, 4]))
        body[max(at, 0) : max(at, 0) + 4] = struct.pack("<I", _size(rng, 2**32 - 1))
    return bytes(body)


MAKERS: tuple[Maker, ...] = (
    _changed, _changed, _cut, _spliced, _repeated, _foreign, _noise,
    _png, _jpeg, _gif, _tiff, _bmp, _pnm, _boxes,
)  # fmt: skip


def make(seed: int) -> bytes:
    """The file of a case."""
    rng = draw(NAME, seed)
    return MAKERS[seed % len(MAKERS)](rng)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def run(seed: int) -> None:
    path = Path(_folder().name) / "picture"
    path.write_bytes(make(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = open_image(path)
    if image.mode != "RGB" or not 0 < image.width * image.height <= MAX_PIXELS:
        raise Fault(WRONG, f"a picture of mode {image.mode} and size {image.size}")


def prepare() -> None:
    seeds()
    others()


FUZZERS = [Fuzzer(NAME, run, cases=3000, quick=112, prepare=prepare)]
