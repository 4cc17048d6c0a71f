"""What a picture's file holds, looked through before it is decoded.

A decoder reads what a file tells it to: hundreds of megabytes of comments, a JPEG of thousands of
scans, a tile of gigabytes in a file of a hundred bytes. Here the containers are walked, in bounded
time: what exceeds a stated limit is refused, and metadata beyond `MAX_METADATA` is left out, since
no pixel depends on it. A file without excess is handed on untouched.
"""

import io
import mmap
import re
import struct
import zlib
from collections.abc import Callable
from typing import BinaryIO

from resprune_jax.errors import CallError
from resprune_jax.models.images.pnm import LONGEST_HEADER, pnm_header

MAX_BYTES = 2**29
"""Bytes of the largest file that is read."""

MAX_METADATA = 2**20
"""Bytes of comments, profiles and the like, decompressed, up to which a file stays as it is."""

MAX_BLOCKS = 2**18
"""Chunks, segments or blocks of a file."""

MAX_JPEG = 2**28
"""Bytes of a JPEG file."""

MAX_SCANS = 100
"""Scans of a JPEG file; usual are 1, or 10 where it is progressive."""

MAX_SCANNED = 2**32
"""Pixels of a JPEG file times its scans."""

MAX_SLOW = 2**23
"""Samples, or bytes of run lengths, of what Pillow decodes one by one: text PNM, RLE BMP."""

MAX_PARTS = 2**17
"""Strips or tiles of a TIFF file."""

MAX_VALUES = 2**18
"""Numbers in an entry of a TIFF file."""

_SAVE = "save it anew, as a PNG for example"

Span = tuple[int, int]  # from, to: bytes of a file
Data = bytes | mmap.mmap
Walk = Callable[[Data, str], list[Span] | None]


def sieve(file: BinaryIO, kind: str, name: str) -> BinaryIO:
    """Look a picture's file through.

    Args:
        file: open at its beginning; a real file, or one in memory.
        kind: one of `kinds.FORMATS`.
        name: what messages call it.

    Returns:
        The file at its beginning, or a copy in memory without its excessive metadata.

    Raises:
        CallError: a file beyond the limits of this module.
    """
    size = file.seek(0, io.SEEK_END)
    if size > MAX_BYTES:
        raise CallError(
            f"{name} has {size} bytes; files of up to {MAX_BYTES} are read: {_SAVE}, or shrink it"
        )
    walk = _WALKS.get(kind)
    file.seek(0)
    if walk is None or size == 0:
        return file
    if size <= MAX_METADATA or isinstance(file, io.BytesIO):
        found = _walked(file.read(), walk, name)
    else:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = _walked(data, walk, name)
    file.seek(0)
    return file if found is None else io.BytesIO(found)


def _walked(data: Data, walk: Walk, name: str) -> bytes | None:
    """What is left of a file, None where that is all of it."""
    try:
        kept = walk(data, name)
    except (IndexError, struct.error):  # cut: the decoder says so
        return None
    return None if kept is None else b"".join(data[begin:end] for begin, end in kept)


def _excess(name: str, what: str) -> CallError:
    return CallError(f"{name} has {what}: {_SAVE}")


class _Budget:
    """Counts metadata; `spend` says whether there is room for more, and once there is not, no."""

    def __init__(self) -> None:
        self.left = MAX_METADATA
        self.over = False

    def spend(self, count: int) -> bool:
        self.left -= count
        self.over = self.over or self.left < 0
        return not self.over


# --- PNG ------------------------------------------------------------------------------------------

_ANIMATION = (b"acTL", b"fcTL", b"fdAT")
_PACKED = {b"zTXt": b"\0", b"iCCP": b"\0", b"iTXt": b"\0\1"}


def _png(data: Data, name: str) -> list[Span] | None:
    """Chunks; all that belongs to later frames of an animation comes behind the first picture."""
    budget = _Budget()
    kept: list[tuple[bytes, Span]] = []
    at = 8
    for _ in range(MAX_BLOCKS):
        if at + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"fdAT":
            break
        end = at + 12 + length
        needed = not kind[0] & 32 or kind == b"tRNS" or (kind == b"eXIf" and length < 2**16)
        if needed or budget.spend(length + _inflated(data, kind, at + 8, length)):
            kept.append((kind, (at, min(end, len(data)))))
        at = end
        if kind == b"IEND":
            break
    else:
        raise _excess(name, f"more than {MAX_BLOCKS} chunks")
    if not budget.over:
        return None
    return [(0, 8), *(span for kind, span in kept if kind not in _ANIMATION)]


def _inflated(data: Data, kind: bytes, at: int, length: int) -> int:
    """Bytes that a compressed chunk grows to, as far as that matters."""
    if kind not in _PACKED or length > MAX_METADATA:
        return 0
    body = bytes(data[at : at + length])
    where = body.find(b"\0")
    packed = body[where + 2 :]  # behind the keyword and the method
    if kind == b"iTXt":
        if body[where + 1 : where + 2] != b"\1":
            return 0
        packed = body[where + 3 :].split(b"\0", 2)[-1]
    try:
        return len(zlib.decompressobj().decompress(packed, MAX_METADATA + 1))
    except zlib.error:
        return 0


# --- JPEG -----------------------------------------------------------------------------------------

_FILL = re.compile(rb"\xff+")
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # what ends a scan's data
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


def _jpeg(data: Data, name: str) -> list[Span] | None:
    """Segments, and the number of scans: each of them goes over all pixels."""
    budget = _Budget()
    kept: list[Span] = [(0, 2)]
    pixels, scans, at = 0, 0, 2
    seen: set[bytes] = set()
    if len(data) > MAX_JPEG:
        raise _excess(name, f"{len(data)} bytes, more than {MAX_JPEG}")
    for _ in range(MAX_BLOCKS):
        if at >= len(data):
            break
        fill = _FILL.match(data, at)
        if fill is None:  # what does not belong there is skipped by the decoder, or refused
            following = _MARKER.search(data, at)
            end = following.start() if following else len(data)
            kept.append((at, end))
            at = end
            continue
        if fill.end() >= len(data):
            break
        budget.spend(fill.end() - at - 1)
        at = fill.end() - 1
        marker = data[at + 1]
        if marker == 0xD9:
            kept.append((at, at + 2))  # what lies behind the picture's end is another one
            break
        if marker == 1 or 0xD0 <= marker <= 0xD8:
            kept.append((at, at + 2))
            at += 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        end = at + 2 + length
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            pixels = max(pixels, width * height)
        if marker == 0xDA:
            scans += 1
            following = _MARKER.search(data, end)
            end = following.start() if following else len(data)
        needed = not (0xE0 <= marker <= 0xEF or marker == 0xFE)
        if not needed:
            body = bytes(data[at + 4 : at + 40])
            budget.spend(end - at)
            needed = _matters(marker, body, seen)
        if needed:
            kept.append((at, min(end, len(data))))
        at = end
        if scans > MAX_SCANS or scans * pixels > MAX_SCANNED:
            raise _excess(name, f"{scans} scans or more over {pixels} pixels")
    else:
        raise _excess(name, f"more than {MAX_BLOCKS} segments")
    return kept if budget.over else None


def _matters(marker: int, body: bytes, seen: set[bytes]) -> bool:
    """Whether a segment of metadata decides how the picture looks: colours, and which way is up."""
    if marker in (0xE0, 0xEE):
        mark = bytes((marker,))
    elif marker == 0xE1:
        mark = body[:4]
        if mark not in (b"Exif", b"http"):
            return False
    else:
        return False
    first = mark not in seen
    seen.add(mark)
    return first


# --- GIF ------------------------------------------------------------------------------------------


def _gif(data: Data, name: str) -> list[Span] | None:
    """Extensions before the first picture."""
    budget = _Budget()
    flags = data[10]
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    kept: list[Span] = [(0, at)]
    blocks = 0
    while data[at] == 0x21:
        begin, label = at, data[at + 1]
        at += 2
        while data[at]:
            at += data[at] + 1
            blocks += 1
            if blocks > MAX_BLOCKS:
                raise _excess(name, f"more than {MAX_BLOCKS} blocks of comments")
        at += 1
        if label == 0xF9:  # says which colour is transparent
            kept.append((begin, at))
        else:
            budget.spend(at - begin)
    kept.append((at, len(data)))
    return kept if budget.over else None


# --- PNM ------------------------------------------------------------------------------------------


def _pnm(data: Data, name: str) -> list[Span] | None:
    """The header, whose comments Pillow reads byte by byte, and how much there is as text."""
    header = pnm_header(data)
    if header is None:
        if len(data) > LONGEST_HEADER:
            raise _excess(name, f"no header within its first {LONGEST_HEADER} bytes")
        return None
    digit, width, height, _, _ = header
    samples = width * height * (3 if digit == 3 else 1)
    if digit <= 3 and (samples > MAX_SLOW or len(data) > 8 * MAX_SLOW):
        raise _excess(name, f"{samples} samples as text in {len(data)} bytes")
    return None


# --- BMP, TIFF ------------------------------------------------------------------------------------


def _bmp(data: Data, name: str) -> list[Span] | None:
    """Run lengths are decoded in Python."""
    (length,) = struct.unpack_from("<I", data, 14)
    if length >= 40 and struct.unpack_from("<I", data, 30)[0] in (1, 2) and len(data) > MAX_SLOW:
        raise _excess(name, f"{len(data)} bytes of run lengths")
    return None


_NUMBERS = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_PLACES = (273, 279, 324, 325)  # where strips and tiles lie, and their sizes
_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 322, 323


def _tiff(data: Data, name: str) -> list[Span] | None:
    """The first directory: how many numbers its entries hold, and how large a tile is."""
    order = "<" if data[:2] == b"II" else ">"
    big = 43 in (data[2], data[3])
    head, entry, inline = ("Q", "HHQ8s", 8) if big else ("H", "HHI4s", 4)
    (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + head, data, at)
    if count > 2**12:
        raise _excess(name, f"{count} entries in its directory")
    at += struct.calcsize(order + head)
    total, values = 0, {}
    for _ in range(count):
        tag, kind, number, value = struct.unpack_from(order + entry, data, at)
        at += struct.calcsize(order + entry)
        limit = MAX_PARTS if tag in _PLACES else MAX_VALUES
        if kind in _NUMBERS and number > limit:
            raise _excess(name, f"{number} numbers in entry {tag} of its directory")
        size = number * _NUMBERS.get(kind, 1)
        total += size if size > inline else 0
        if number == 1 and kind in (3, 4):
            values[tag] = struct.unpack_from(order + ("H" if kind == 3 else "I"), value)[0]
    if total > max(len(data), MAX_METADATA):
        raise _excess(name, f"{total} bytes in the entries of its directory, more than the file")
    tile = values.get(_TILE_WIDTH, 0) * values.get(_TILE_HEIGHT, 0)
    if tile > max(2**22, 4 * values.get(_WIDTH, 0) * values.get(_HEIGHT, 0)):
        raise _excess(name, f"tiles of {tile} pixels")
    return None


# --- WebP -----------------------------------------------------------------------------------------


def webp_size(head: bytes) -> tuple[int, int] | None:
    """Width and height as the header of a WebP file has them, None where it is another header.

    The decoder makes room for the picture before anybody can ask for its size.
    """
    kind = head[12:16]
    if kind == b"VP8X" and len(head) >= 30:
        return (
            int.from_bytes(head[24:27], "little") + 1,
            int.from_bytes(head[27:30], "little") + 1,
        )
    if kind == b"VP8L" and len(head) >= 25:
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and len(head) >= 30:
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


_WALKS: dict[str, Walk] = {
    "PNG": _png, "JPEG": _jpeg, "GIF": _gif, "PPM": _pnm, "BMP": _bmp, "TIFF": _tiff,
}  # fmt: skip
