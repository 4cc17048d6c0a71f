"""Frames of a video: arrays, lists, folders and files; sampling; refusals."""

import struct
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resprune_jax import errors
from resprune_jax.errors import CallError, RunError
from resprune_jax.models.images.video import (
    ASSUMED_FPS,
    Sampling,
    VideoLike,
    read_video,
    sample_indices,
)


def film(count: int, width: int = 8) -> np.ndarray:
    """Frames that say their number: all pixels of frame i are i."""
    return np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((6, width, 3), np.uint8)


def read(video: VideoLike, **options: Any) -> tuple[list[int], float]:
    """(the numbers of the frames, frames a second) as `read_video` gives them."""
    options = {"fps": None, "sampling": None, "group": 2, **options}
    with read_video(video, **options) as frames:
        numbers = [int(np.asarray(frame)[0, 0, 0]) for frame in frames]
        assert len(numbers) == len(frames) == len(frames.indices)
        return numbers, frames.sampled_fps


def test_arrays_lists_and_folders_give_every_frame(tmp_path: Path) -> None:
    clip = film(12)
    assert read(clip, fps=6) == (list(range(12)), 6.0)
    assert read([Image.fromarray(frame) for frame in clip], fps=6) == (list(range(12)), 6.0)
    for number, frame in enumerate(clip):
        Image.fromarray(frame).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    # Frame 10 comes after frame 9, not after frame 1.
    assert read(tmp_path, fps=6) == (list(range(12)), 6.0)
    assert read(str(tmp_path), fps=6, sampling=Sampling(fps=2)) == ([0, 3, 6, 9], 2.0)


def test_an_unknown_speed_is_assumed_aloud(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "_SAID", set())
    assert read(film(4)) == ([0, 1, 2, 3], ASSUMED_FPS)
    assert "24 are assumed; pass fps" in caplog.text


@pytest.mark.parametrize(
    ("total", "fps", "sampling", "expected"),
    [
        (10, 24.0, Sampling(), list(range(10))),
        (10, 5.0, Sampling(fps=1.0), [0, 2, 5, 7]),  # 2 wanted, 4 at least
        (100, 10.0, Sampling(fps=1.0, max_frames=6), [0, 16, 33, 50, 66, 83]),
        (3, 24.0, Sampling(fps=2.0), [0, 1]),  # whole groups only
        (1, 24.0, Sampling(fps=2.0), [0]),
        (7, None, Sampling(num_frames=4), [0, 1, 3, 5]),
        (7, None, Sampling(num_frames=7), [0, 1, 2, 3, 4, 5]),
        (5, None, Sampling(num_frames=1), [0, 2]),
    ],
)
def test_sampling(total: int, fps: float | None, sampling: Sampling, expected: list[int]) -> None:
    assert sample_indices(total, fps, sampling, 2).tolist() == expected


def test_wishes_that_cannot_be_met() -> None:
    with pytest.raises(CallError, match="give one of them"):
        Sampling(fps=2, num_frames=4)
    for name in ("fps", "num_frames", "min_frames", "max_frames"):
        with pytest.raises(CallError, match=f"{name} of a video's sampling must be above 0"):
            Sampling(**{name: 0})
    with pytest.raises(CallError, match="8 frames were asked of a video that has 5"):
        sample_indices(5, 24, Sampling(num_frames=8), 2)
    with pytest.raises(CallError, match="own speed is not known"):
        sample_indices(5, None, Sampling(fps=2), 2)
    with pytest.raises(CallError, match="fps is nan"):
        read(film(4), fps=float("nan"))


@pytest.mark.parametrize(
    ("video", "said"),
    [
        (film(4).astype(np.float32), "of float32"),
        (film(4)[0], r"got \(6, 8, 3\)"),
        (film(4)[:0], r"got \(0, 6, 8, 3\)"),
        ([], "no frames"),
        (7, "got int"),
        (Image.new("RGB", (4, 4)), "got Image"),
        ("not/there.mp4", "does not exist"),
    ],
)
def test_things_that_are_no_video(video: Any, said: str) -> None:
    with pytest.raises(CallError, match=said):
        read(video)


def test_a_folder_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(CallError, match="has no pictures"):
        read(tmp_path)
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"nonsense")
    with pytest.raises(RunError, match="not an image"):
        read(tmp_path)


class FakeStream:
    """A video stream of `film`."""

    def __init__(self, frames: int, rate: float | None) -> None:
        self.frames, self.average_rate = frames, rate


class FakeFile:
    """What `av.open` gives: the frames of `film`, decoded from the front."""

    name = "film.mp4"

    def __init__(self, count: int, *, said: int | None = None, rate: float | None = 10.0) -> None:
        self.count, self.decoded = count, 0
        self.side_data: dict[str, bytes] = {}
        stream = FakeStream(count if said is None else said, rate)
        self.streams = types.SimpleNamespace(video=[stream])

    def __enter__(self) -> "FakeFile":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def seek(self, offset: int) -> None:
        assert offset == 0

    def decode(self, video: int) -> Iterator[Any]:
        assert video == 0
        for frame in film(self.count):
            self.decoded += 1
            yield types.SimpleNamespace(
                to_ndarray=lambda format, frame=frame: frame, side_data=self.side_data
            )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"a film")
    return path


def fake_av(monkeypatch: pytest.MonkeyPatch, opened: Any) -> None:
    """An `av` module whose `open` gives (or raises) `opened`."""

    class FFmpegError(Exception):
        pass

    def open_(path: str) -> Any:
        if opened == "broken":
            raise FFmpegError("Invalid data\nfound")
        return opened

    module: Any = types.ModuleType("av")
    module.open, module.error = open_, types.SimpleNamespace(FFmpegError=FFmpegError)
    monkeypatch.setitem(sys.modules, "av", module)


def test_a_file_is_sampled_twice_a_second(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = FakeFile(43)
    fake_av(monkeypatch, opened)
    numbers, speed = read(file)
    assert numbers == [0, 5, 10, 16, 21, 26, 32, 37] and speed == pytest.approx(80 / 43)
    assert opened.decoded <= 39  # nothing behind the last frame that is wanted
    assert read(file, sampling=Sampling(num_frames=4))[0] == [0, 10, 21, 32]
    assert read(file, fps=20)[0] == [0, 10, 21, 32]  # slowed down: 2.15 seconds


def test_a_header_without_a_count(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_av(monkeypatch, FakeFile(12, said=0))
    assert read(file, sampling=Sampling(num_frames=4))[0] == [0, 3, 6, 9]
    fake_av(monkeypatch, FakeFile(0, said=0))
    with pytest.raises(RunError, match="holds no frame"):
        read(file)


def test_files_that_cannot_be_read(
    file: Path, monkeypatch: pytest.MonkeyPatch, absent: Callable[..., None]
) -> None:
    absent("av")
    with pytest.raises(CallError, match=r"needs PyAV: pip install 'resprune-jax\[video\]'"):
        read(file)
    fake_av(monkeypatch, "broken")
    with pytest.raises(RunError, match="cannot be read: Invalid data found"):
        read(file)
    fake_av(monkeypatch, FakeFile(6, said=40))
    with pytest.raises(RunError, match="ends after 2 of the 8 frames"):
        read(file)
    silent = FakeFile(6)
    silent.streams.video = []
    fake_av(monkeypatch, silent)
    with pytest.raises(RunError, match="holds no video"):
        read(file)


def test_frames_of_two_sizes_are_refused() -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from resprune_jax.models.families.qwen_vl.images import QwenProcessor
    from resprune_jax.models.towers.qwen_vision.config import QwenVisionConfig

    processor = QwenProcessor(Qwen2VLImageProcessorPil(), QwenVisionConfig(32, 56, 2, 2, 64))
    with pytest.raises(CallError, match=r"of 8 x 6 and of 9 x 6 pixels \(frame 1\)"):
        processor.video([film(1)[0], film(1, width=9)[0]], fps=2)


@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        ((1, 0, 0, 1), lambda a: a),
        ((0, 1, -1, 0), lambda a: np.rot90(a, -1)),
        ((-1, 0, 0, -1), lambda a: np.rot90(a, 2)),
        ((0, -1, 1, 0), np.rot90),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda a: a.swapaxes(0, 1)),
        ((0, -1, -1, 0), lambda a: np.rot90(a.swapaxes(0, 1), 2)),
        ((0.7, 0.7, -0.7, 0.7), lambda a: a),  # no quarter turn
        ((0, 0, 0, 0), lambda a: a),
    ],
)
def test_a_film_is_turned_as_its_matrix_says(
    file: Path, monkeypatch: pytest.MonkeyPatch, matrix: tuple[float, ...], turned: Any
) -> None:
    """x and y of a pixel on the screen are (a x + c y, b x + d y)."""
    a, b, c, d = (int(value * 2**16) for value in matrix)
    opened = FakeFile(4)
    opened.side_data["DISPLAYMATRIX"] = struct.pack("=9i", a, b, 0, c, d, 0, 0, 0, 2**30)
    stored = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    monkeypatch.setattr(sys.modules[__name__], "film", lambda count, width=8: [stored] * count)
    fake_av(monkeypatch, opened)
    with read_video(file, fps=None, sampling=Sampling(), group=2) as frames:
        shown = np.asarray(next(iter(frames)))
    assert (shown == turned(stored)).all()


@pytest.mark.parametrize(
    "hidden", ["._frame1.png", ".DS_Store", ".hidden.jpg", "Thumbs.db", "notes.txt", "clip.mp4"]
)
def test_hidden_files_are_no_frames(tmp_path: Path, hidden: str) -> None:
    for number in range(3):
        Image.fromarray(film(4)[number]).save(tmp_path / f"frame{number}.png")
    (tmp_path / hidden).write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "folder.png").mkdir()
    assert read(tmp_path)[0] == [0, 1, 2]
