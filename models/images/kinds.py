"""What kind of file somebody gave as a picture, told by its first bytes.

Read are the formats that photographs and screenshots come in, whose decoders are quick, whose files
can be bounded before they are decoded, and of which a cut file is noticed. Every other kind is
refused by its name: formats without a signature (TGA), that run programs (EPS), that are decoded
in spite of missing parts (PCX, JPEG 2000), or pixel by pixel in Python (QOI).
"""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
"""The formats that are read, by Pillow's names."""

HEAD = 512
"""Bytes from a file's beginning that tell its kind."""

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    *((mark, "TIFF") for mark in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    *((b"P%d" % kind, "PPM") for kind in range(1, 7)),
)

_OTHERS = (
    (b"%PDF", "a PDF document: save its page as a PNG"),
    (b"%!PS", "a PostScript file"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript file"),
    (b"8BPS", "a Photoshop document"),
    (b"gimp xcf", "a GIMP document"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"II\xbc", "a JPEG XR picture"),
    (b"qoif", "a QOI picture"),
    (b"\0\0\1\0", "an icon"),
    (b"\0\0\2\0", "a cursor"),
    (b"icns", "an icon"),
    (b"DDS ", "a DDS texture"),
    (b"SIMPLE  =", "a FITS picture"),
    (b"\x76\x2f\x31\x01", "an OpenEXR picture"),
    (b"#?RADIANCE", "a Radiance picture"),
    (b"\x01\xda", "an SGI picture"),
    (b"\x59\xa6\x6a\x95", "a Sun raster picture"),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile"),
    *((bytes((10, version, 1)), "a PCX picture") for version in (0, 2, 3, 4, 5)),
    (b"P7", "a PAM picture"),
    (b"Pf", "a PFM picture"),
    (b"PF", "a PFM picture"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array: give np.load(file) in Python"),
    (b"PK\x03\x04", "a ZIP archive: unpack it"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive: unpack it"),
    (b"\xfd7zXZ", "an XZ archive: unpack it"),
    (b"BZh", "a bzip2 archive: unpack it"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it"),
    (b"Rar!", "a RAR archive: unpack it"),
    (b"\x1aE\xdf\xa3", "a video: give it as a video"),
    (b"OggS", "an Ogg file"),
    (b"ID3", "an MP3 file"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file: run git lfs pull"),
)

_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "a HEIC picture"),
    **dict.fromkeys((b"mif1", b"msf1"), "a HEIF picture"),
    b"jxl ": "a JPEG XL picture",
    b"crx ": "a camera's raw picture",
}


def kind_of(head: bytes) -> tuple[str | None, str]:
    """What a file is.

    Args:
        head: its first `HEAD` bytes, or all where there are fewer.

    Returns:
        (one of `FORMATS`, or None; what it is called, with what to do where that is not to save it
        in another format, or "" where it is not known).
    """
    if head[:4] == b"RIFF":
        form = head[8:12]
        if form == b"WEBP":
            return "WEBP", ""
        return None, {b"AVI ": "a video: give it as a video", b"WAVE": "a sound"}.get(form, "")
    if head[4:8] == b"ftyp":
        brands = [head[8:12], *(head[at : at + 4] for at in range(16, _box(head), 4))]
        if b"avif" in brands or b"avis" in brands:
            return "AVIF", ""
        named = next((_BRANDS[brand] for brand in brands if brand in _BRANDS), None)
        return None, named or "a video: give it as a video"
    for mark, name in _SIGNATURES:
        if head.startswith(mark):
            return name, ""
    return None, next((name for mark, name in _OTHERS if head.startswith(mark)), _text(head))


def refused(head: bytes) -> str:
    """The end of a sentence about a file that is not read: what it is, and what to do."""
    _, name = kind_of(head)
    known = ", ".join(FORMATS)
    if not name:
        return f"is not an image in a known format ({known})"
    if ":" in name:
        return f"is {name}"
    return f"is {name}, not an image in a known format ({known}): convert it, to PNG for example"


def _box(head: bytes) -> int:
    """Where the first box of an ISO file ends, in what is there of it."""
    return min(int.from_bytes(head[:4], "big"), len(head) - 3)


def _text(head: bytes) -> str:
    """What a file of text is called, "" where it holds none."""
    body = head.removeprefix(b"\xef\xbb\xbf")
    start = body.lstrip()[:200].lower()
    if b"<svg" in start:
        return "an SVG drawing: save it as a PNG"
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page: the download of the picture gave something else"
    for cut in range(4):  # the last character may be torn
        try:
            text = body[: len(body) - cut].decode()
        except UnicodeDecodeError:
            continue
        return (
            "a text file, not an image: give a picture"
            if all(c.isprintable() or c.isspace() for c in text)
            else ""
        )
    return ""
