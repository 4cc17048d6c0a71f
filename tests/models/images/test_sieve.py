"""Files that would cost a decoder time or memory without end are refused, or read in part."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from resprune_jax.errors import CallError, ResPruneError, RunError
from resprune_jax.models.images import sieve
from resprune_jax.models.images.files import check_kind, open_image
from resprune_jax.models.images.kinds import FORMATS, kind_of
from tests.models.images.pictures import picture, saved

MANY = 2_000_000
COMMENTS = (b"\xff\xfe\xff\xff" + bytes(65533)) * 40  # of a JPEG file


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def behind_header(extra: bytes) -> bytes:
    content = saved(picture(), "PNG")
    return content[:33] + extra + content[33:]


def with_text(size: int) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * size, zip=True)
    return saved(picture(), "PNG", pnginfo=info)


def in_jpeg(extra: bytes) -> bytes:
    content = saved(picture(), "JPEG")
    return content[:2] + extra + content[2:]


def in_gif(extra: bytes) -> bytes:
    content = saved(picture(), "GIF")
    at = 13 + (3 << (content[10] & 7) + 1)
    return content[:at] + extra + content[at:]


def scans(count: int, junk: bytes = b"") -> bytes:
    content = saved(picture(), "JPEG", progressive=True)
    last = content[content.rfind(b"\xff\xda") : -2]
    return content[:-2] + junk + last * count + b"\xff\xd9"


def tiff(*entries: tuple[int, int, int, int], tail: int = 100) -> bytes:
    plain = [(256, 4, 1, 9), (257, 4, 1, 9), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    head = b"II*\0" + struct.pack("<IH", 8, len(plain) + len(entries))
    body = b"".join(struct.pack("<HHII", *entry) for entry in [*plain, *entries])
    return head + body + bytes(4 + tail)


EXCESS = {
    "a compressed text of PNG": (lambda: with_text(MANY), "PNG"),
    "a plain text of PNG": (lambda: behind_header(chunk(b"tEXt", b"a\0" + b"x" * MANY)), "PNG"),
    "an international text": (
        lambda: behind_header(chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(MANY)))), "PNG",
    ),
    "a colour profile of PNG": (
        lambda: behind_header(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(MANY)))), "PNG",
    ),
    "many small texts": (
        lambda: behind_header(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(9000))) * 300), "PNG",
    ),
    "text behind the pixels": (
        lambda: saved(picture(), "PNG")[:-12] + with_text(MANY)[33:], "PNG",
    ),
    "an unknown chunk": (lambda: behind_header(chunk(b"prIv", bytes(MANY))), "PNG"),
    "comments of JPEG": (lambda: in_jpeg(COMMENTS), "JPEG"),
    "EXIF without end": (
        lambda: in_jpeg((b"\xff\xe1\xff\xffExif\0\0" + bytes(65527)) * 40), "JPEG",
    ),
    "fill bytes": (lambda: in_jpeg(b"\xff" * MANY), "JPEG"),
    "comments of GIF": (lambda: in_gif(b"\x21\xfe" + (b"\xff" + bytes(255)) * 9000 + b"\0"), "GIF"),
    "a comment of PPM": (
        lambda: b"P6\n#" + b"x" * 900_000 + b"\n13 9\n255\n" + picture().tobytes(), "PPM",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXCESS)
def test_metadata_without_end_changes_no_pixel(tmp_path: Path, name: str) -> None:
    make, form = EXCESS[name]
    path, plain = tmp_path / "picture", tmp_path / "plain"
    path.write_bytes(make())
    plain.write_bytes(saved(picture(), form))
    assert (np.asarray(open_image(path)) == np.asarray(open_image(plain))).all()
    with path.open("rb") as file:
        left = sieve.sieve(file, form, "x").read()
    assert form == "PPM" or len(left) < sieve.MAX_METADATA


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_the_way_up_is_kept(tmp_path: Path, form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(picture(), form, exif=exif)
    path = tmp_path / "picture"
    path.write_bytes(content)
    upright = np.asarray(open_image(path))
    text = (
        chunk(b"tEXt", b"a\0" + bytes(MANY))
        if form == "PNG"
        else b"\xff\xfe\xff\xff" + bytes(65533)
    )
    at = 33 if form == "PNG" else 2
    path.write_bytes(content[:at] + text * (40 if form == "JPEG" else 1) + content[at:])
    assert (np.asarray(open_image(path)) == upright).all()


def test_a_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    content = saved(picture().convert("CMYK"), "JPEG")
    paths = tmp_path / "plain", tmp_path / "long"
    paths[0].write_bytes(content)
    paths[1].write_bytes(content[:2] + COMMENTS + content[2:])
    assert (np.asarray(open_image(paths[0])) == np.asarray(open_image(paths[1]))).all()


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "scans": (lambda: scans(2000), "scans"),
    "scans behind junk": (lambda: scans(2000, b"junk"), "scans"),
    "a hundred scans too many": (lambda: scans(101), "scans"),
    "segments": (lambda: in_jpeg(b"\xff\xfe\0\2" * 300_000), "segments"),
    "chunks": (lambda: behind_header(chunk(b"prIv", b"") * 300_000), "chunks"),
    "blocks of comments": (lambda: in_gif(b"\x21\xfe" + b"\1x" * 300_000 + b"\0"), "blocks"),
    "a header of PPM": (lambda: b"P6\n#" + b"x" * MANY + b"\n2 2\n255\n" + bytes(12), "header"),
    "numbers as text": (lambda: b"P2 9000 9000 255\n" + b"1 " * 1000, "samples as text"),
    "strips": (lambda: tiff((273, 4, 10**8, 8), (279, 4, 10**8, 8)), "10{8} numbers|numbers in"),
    "a tile": (lambda: tiff((322, 4, 1, 65520), (323, 4, 1, 65520)), "tiles of"),
    "a directory": (lambda: tiff(*[(40000, 1, 1, 1)] * 5000), "entries in its directory"),
    "the same bytes again and again": (
        lambda: tiff(*[(40000 + i, 7, 10**6, 8) for i in range(50)]), "more than the file",
    ),
    "run lengths": (
        lambda: b"BM" + struct.pack("<IHHI", 0, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 9000, 9000, 1, 8, 1, 0, 0, 0, 256, 0)
        + bytes(sieve.MAX_SLOW + 1),
        "run lengths",
    ),
    "a canvas of WebP": (
        lambda: b"RIFF" + struct.pack("<I", 99) + b"WEBPVP8X\x0a\0\0\0\0\0\0\0"
        + b"\xfe\x3f\0" * 2 + bytes(90),
        "16383 x 16383",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_exceeds_a_limit_is_refused(tmp_path: Path, name: str) -> None:
    make, said = REFUSED[name]
    path = tmp_path / "picture"
    path.write_bytes(make())
    with pytest.raises(CallError, match=said) as caught:
        open_image(path)
    assert str(caught.value).isprintable()


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(saved(picture(), "PNG"))
    with path.open("ab") as file:
        file.truncate(sieve.MAX_BYTES + 1)
    with pytest.raises(CallError, match=f"files of up to {sieve.MAX_BYTES}"):
        open_image(path)


def test_as_many_scans_as_allowed_are_read(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(scans(90))
    assert open_image(path).size == picture().size


@pytest.mark.parametrize("form", FORMATS)
def test_an_ordinary_file_is_handed_on_as_it_is(tmp_path: Path, form: str) -> None:
    path = tmp_path / "picture"
    path.write_bytes(saved(picture(), form))
    with path.open("rb") as file:
        assert sieve.sieve(file, form, "x") is file and file.tell() == 0


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([5, 6]), st.integers(1, 65535), st.integers(0, 2**32 - 1), st.booleans())
def test_pnm_of_any_range_is_what_pillow_reads(
    tmp_path_factory: Any, digit: int, top: int, rng_seed: int, beyond: bool
) -> None:
    """Read here for some ranges; Pillow, one sample after the other, is the oracle."""
    rng = np.random.default_rng(rng_seed)
    most = (255 if top < 256 else 65535) if beyond else top  # files hold values above their range
    values = rng.integers(0, most + 1, 7 * 5 * (3 if digit == 6 else 1))
    body = values.astype(">u2" if top > 255 else "u1").tobytes()
    content = b"P%d\n# a comment\n7 5 %d\n" % (digit, top) + body
    path = tmp_path_factory.mktemp("pnm") / "picture"
    path.write_bytes(content)
    with Image.open(io.BytesIO(content)) as opened:
        wanted = np.asarray(open_image(opened))
    assert (np.asarray(open_image(path)) == wanted).all()
    path.write_bytes(content[:-1])
    with pytest.raises(RunError):
        open_image(path)


# --- kinds ----------------------------------------------------------------------------------------

KINDS = {
    b"%PDF-1.7\n": "a PDF document",
    b"\0\0\0\x0cjP  \r\n\x87\n": "a JPEG 2000 picture",
    b"\n\5\1\x08": "a PCX picture",
    b"qoif\0\0\0\1": "a QOI picture",
    b"\0\0\1\0\1\0": "an icon",
    b"\0\0\0\x18ftypheic\0\0\0\0mif1heic": "a HEIC picture",
    b"\0\0\0\x18ftypisom\0\0\0\0isomavc1": "a video",
    b"RIFF\0\0\0\0AVI LIST": "a video",
    b"PK\x03\x04": "a ZIP archive",
    b"<!DOCTYPE html><html>": "a web page",
    b"<?xml version='1.0'?><svg>": "an SVG drawing",
    b"version https://git-lfs.github.com/spec/v1\n": "a Git LFS pointer",
    "Bonjour à tous".encode(): "a text file",
    b"\x93NUMPY\1\0": "a NumPy array",
}


@pytest.mark.parametrize("head", KINDS)
def test_what_is_no_picture_is_called_by_its_name(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(
        head + (b"" if head.isascii() else bytes(100)) if b"\xc3" not in head else head
    )
    for look in (check_kind, open_image):
        with pytest.raises(RunError, match=KINDS[head]) as caught:
            look(path)
        assert "picture.png" in str(caught.value)


@pytest.mark.parametrize("form", FORMATS)
def test_formats_are_known_by_their_first_bytes(tmp_path: Path, form: str) -> None:
    content = saved(picture(), form)
    assert kind_of(content[:512]) == (form, "")
    path = tmp_path / "no-suffix"
    path.write_bytes(content)
    check_kind(path)


@pytest.mark.parametrize("form", [*FORMATS, "JPEG2000", "PCX", "TGA", "ICO"])
def test_a_cut_file_never_gives_another_picture(tmp_path: Path, form: str) -> None:
    image = picture().resize((61, 47))
    content = saved(image, form)
    path = tmp_path / "picture"
    path.write_bytes(content)
    whole = np.asarray(open_image(path)) if form in FORMATS else None
    for cut in np.linspace(1, len(content) - 1, 60).astype(int):
        path.write_bytes(content[:cut])
        try:
            got = np.asarray(open_image(path))
        except ResPruneError:
            continue
        assert whole is not None and (got == whole).all(), f"cut at {cut} of {len(content)}"
