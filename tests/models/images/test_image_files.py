"""Files that are no pictures, broken or too large get one clear line, in bounded memory."""

import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from resprune_jax.errors import CallError, ResPruneError, RunError
from resprune_jax.models.images.files import (
    MAX_PIXELS,
    MAX_SIDE,
    check_size,
    open_bytes,
    open_image,
)
from tests.models.images.pictures import HEIGHT, SIXTEEN, WIDTH, picture, png, saved

# --- files that do not work -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("", "non-empty text"),
        ("no/such/picture.png", "'no/such/picture.png' does not exist"),
        ("https://example.org/cat.png", "links are not fetched, download it first"),
        ("zero\0byte", "null byte"),
        ("a" * 5000, r"aaa\.\.\.aaa.*name too long"),
        ("line\nbreak", r"'line\\nbreak' does not exist"),
        (b"bytes", "got bytes: open it with PIL"),
        (None, "got NoneType"),
        (Image.new("RGB", (0, 5)), "0 x 5: it has no pixels"),
    ],
)
def test_wrong_calls(given: object, reason: str) -> None:
    with pytest.raises(CallError, match=reason) as caught:
        open_image(given)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_what_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(CallError, match="is a folder"):
        open_image(tmp_path)
    with pytest.raises(CallError, match="Not a directory"):
        (tmp_path / "file").write_text("x")
        open_image(tmp_path / "file" / "picture.png")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CallError, match="not a regular file"):
        open_image(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"hello, this is text", "is a text file, not an image: give a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a known format"),
        (b"\x89PNG\r\n\x1a\n", "corrupt|known format"),
    ],
)
def test_files_that_are_no_images(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad picture.png"
    path.write_bytes(content)
    with pytest.raises(RunError, match=reason) as caught:
        open_image(path)
    assert "bad picture.png" in str(caught.value) and "\n" not in str(caught.value)


LARGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_truncated_files(tmp_path: Path, form: str, share: float) -> None:
    content = saved(LARGE, form)
    path = tmp_path / "half"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(RunError, match="half'"):
        open_image(path)


def test_an_open_image_whose_file_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    path.write_bytes(saved(LARGE, "JPEG")[:3000])
    with Image.open(path) as opened, pytest.raises(RunError, match=r"half\.jpg.*truncated"):
        open_image(opened)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_another_library_that_makes_pillow_lenient_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, share: float
) -> None:
    """lmms-eval does: what is missing would be grey."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    content = saved(LARGE, form)
    path = tmp_path / "half"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(RunError, match="half'"):
        open_image(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True  # theirs again


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(RunError, match="permission denied"):
        open_image(tmp_path / "picture.png")


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 2**31 - 1), (12_000, 12_000)])
def test_a_bomb_is_refused_by_its_header(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above Pillow's own error and between its warning and its error; nothing is decoded."""

    def load(self: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    path = tmp_path / "bomb.png"
    path.write_bytes(png(*size, bytes(1000)))
    with pytest.raises(CallError, match=r"bomb\.png'.*images of up to 134217728 pixels"):
        open_image(path)


def test_the_limits() -> None:
    check_size(2**14, 2**13, "x")
    check_size(MAX_SIDE, 2**11, "x")
    for width, height in [(2**14 + 1, 2**13), (MAX_SIDE + 1, 1), (1, MAX_SIDE + 1)]:
        with pytest.raises(CallError, match="shrink it first"):
            check_size(width, height, "x")
    assert MAX_PIXELS == 2**27


def test_a_size_that_pillow_warns_about_is_read_quietly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "picture.png"
    picture().save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", WIDTH * HEIGHT - 1)
    before = list(warnings.filters)
    assert open_image(path).size == (WIDTH, HEIGHT)
    assert list(warnings.filters) == before


def test_bounded_memory(tmp_path: Path) -> None:
    """Bombs, and a long thin picture that is padded, within 256 MB on top of the imports.

    A decoded bomb would need 10 GB, the padded square of the thin picture 1.6 GB.
    """
    (tmp_path / "bomb.png").write_bytes(png(100_000, 100_000, bytes(10_000)))
    Image.new("RGB", (20_000, 10), "red").save(tmp_path / "wide.png")
    Image.new("RGB", (10, 20_000), "red").save(tmp_path / "tall.png")
    script = textwrap.dedent(
        """
        import resource, sys
        from pathlib import Path
        from resprune_jax.errors import CallError
        from resprune_jax.models.images.files import open_image
        from resprune_jax.models.families.llava.images import pad_and_resize

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))
        folder = Path(sys.argv[1])
        try:
            open_image(folder / "bomb.png")
        except CallError as problem:
            assert "100000 x 100000" in str(problem) or "too many pixels" in str(problem)
        else:
            raise AssertionError("read a bomb")
        for name in ("wide", "tall"):
            out = pad_and_resize(open_image(folder / f"{name}.png"), 336, (0, 0, 255))
            assert out.size == (336, 336)
            red, _, blue = out.getpixel((168, 168))
            print(name, out.getpixel((0, 0)), red > 0 and blue < 255)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "wide (0, 0, 255) True",
        "tall (0, 0, 255) True",
    ]


# --- anything at all ------------------------------------------------------------------------------

_SEEDS = [
    saved(picture(), "PNG"),
    saved(picture(), "JPEG", exif=Image.Exif()),
    saved(picture(), "WEBP"),
    saved(picture(), "GIF"),
    saved(picture(), "BMP"),
    saved(picture(), "TIFF"),
    saved(picture(), "PPM"),
    saved(picture(), "ICO"),
    saved(picture(), "PCX"),
    saved(picture(), "TGA"),
    saved(picture(), "QOI"),
    saved(Image.fromarray(SIXTEEN), "TIFF"),
    saved(picture().quantize(8), "PNG", transparency=bytes(8)),
]


def _patched(content: bytes, changes: list[tuple[int, bytes]], cut: int) -> bytes:
    """A file with some bytes overwritten and its end cut off."""
    body = bytearray(content)
    for place, new in changes:
        start = place % len(body)
        body[start : start + len(new)] = new
    return bytes(body[: len(body) - cut % len(body)] if cut else body)


_BROKEN = st.builds(
    _patched,
    st.sampled_from(_SEEDS),
    st.lists(st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=4)), max_size=6),
    st.one_of(st.just(0), st.integers(0, 2000)),
)
_MAGIC = st.builds(
    lambda seed, length, rest: seed[:length] + rest,
    st.sampled_from(_SEEDS),
    st.integers(0, 30),
    st.binary(max_size=200),
)


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], Path]:
    path = tmp_path_factory.mktemp("fuzz") / "picture"

    def write_bytes(content: bytes) -> Path:
        path.write_bytes(content)
        return path

    return write_bytes


@settings(max_examples=500, deadline=None)
@given(content=st.one_of(st.binary(max_size=100), _MAGIC, _BROKEN))
def test_any_bytes_are_read_or_refused(write: Callable[[bytes], Path], content: bytes) -> None:
    """Only this project's errors come out, on one line, and no warning (they are errors here)."""
    path = write(content)
    try:
        image = open_image(path)
    except ResPruneError as problem:
        assert "\n" not in str(problem) and "picture'" in str(problem)
        with pytest.raises(type(problem)) as caught:
            open_bytes(content, f"image {str(path)!r}")
        assert str(caught.value) == str(problem)
    else:
        assert image.mode == "RGB" and min(image.size) > 0
        assert open_bytes(content, "the same").tobytes() == image.tobytes()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "BMP", "PPM"])
def test_bytes_are_read_as_a_file_is(tmp_path: Path, form: str) -> None:
    """Also of more than a mebibyte, where a file is mapped and bytes are not."""
    noise = np.random.default_rng(1).integers(0, 256, (700, 600, 3), dtype=np.uint8)
    content = saved(Image.fromarray(noise), form, **({"quality": 100} if form == "JPEG" else {}))
    (tmp_path / "large").write_bytes(content)
    assert len(content) > 2**20 or form == "JPEG"
    assert open_bytes(content, "x").tobytes() == open_image(tmp_path / "large").tobytes()
    with pytest.raises(RunError, match="row 3"):
        open_bytes(content[: len(content) // 2], "the picture of row 3")
