"""Videos as frames: an array, a list or a folder of pictures, or a file through PyAV.

Which frames are taken follows the sampling of transformers' Qwen2-VL video processor. Frames are
read one at a time, so that a long film never lies in memory.
"""

import math
import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resprune_jax.errors import CallError, ResPruneError, RunError, say_once
from resprune_jax.models.images.files import ImageLike, name_of, open_image
from resprune_jax.models.images.kinds import FORMATS

VideoLike = np.ndarray | Sequence[ImageLike] | str | os.PathLike[str]
"""Frames (T, height, width, 3) uint8, a list of pictures, a folder of pictures, or a video file."""

ASSUMED_FPS = 24.0
"""Frames a second of a video that does not say: transformers' assumption."""

FILE_FPS = 2.0
"""Frames a second taken from a video file unless told otherwise: Qwen's own."""


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are taken; without either of the first two, all of them.

    Attributes:
        fps: frames a second to take.
        num_frames: how many to take, spread evenly.
        min_frames: with `fps`, at least so many, if there are as many.
        max_frames: with `fps`, at most so many.

    Raises:
        CallError: both of `fps` and `num_frames`, or a number that is not above 0.
    """

    fps: float | None = None
    num_frames: int | None = None
    min_frames: int = 4
    max_frames: int = 768

    def __post_init__(self) -> None:
        """Refuse what cannot work when it is written down."""
        if self.fps is not None and self.num_frames is not None:
            raise CallError("a video is sampled by fps or by num_frames: give one of them")
        for name in ("fps", "num_frames", "min_frames", "max_frames"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise CallError(f"{name} of a video's sampling must be above 0, got {value}")


@dataclass(frozen=True)
class Frames:
    """The sampled frames of a video, read while iterated over, once.

    Attributes:
        name: what messages call the video.
        indices: which of its frames they are, ascending.
        sampled_fps: how many of them there are in a second of video.
        read: opens them one after the other.
    """

    name: str
    indices: np.ndarray
    sampled_fps: float
    read: Callable[[np.ndarray], Iterator[Image.Image]]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Image.Image]:
        found = 0
        for frame in self.read(self.indices):
            found += 1
            yield frame
        if found != len(self.indices):
            raise RunError(
                f"{self.name} ends after {found} of the {len(self.indices)} frames that its header "
                "promises: save its frames to a folder and give that"
            )


def sample_indices(total: int, fps: float | None, sampling: Sampling, group: int) -> np.ndarray:
    """The frames to take, as transformers' Qwen2-VL video processor chooses them.

    Args:
        total: frames of the video, at least 1.
        fps: its frames a second, or None if not known.
        sampling: what is wanted.
        group: frames that one patch spans; as many groups are taken as are whole, at least one
            frame (transformers fails where no group is whole).

    Returns:
        (n,) int, ascending, evenly spread.

    Raises:
        CallError: more frames than there are, or `Sampling.fps` of a video of unknown speed.
    """
    if sampling.num_frames is not None:
        wanted = float(round(sampling.num_frames / group) * group)
        if sampling.num_frames > total:
            raise CallError(
                f"{sampling.num_frames} frames were asked of a video that has {total}: ask for "
                "fewer"
            )
    elif sampling.fps is not None:
        if fps is None:
            raise CallError(
                f"{sampling.fps} frames a second were asked of a video whose own speed is not "
                "known: give fps=, or num_frames"
            )
        wanted = min(max(total / fps * sampling.fps, sampling.min_frames), sampling.max_frames)
    else:
        return np.arange(total)
    count = math.floor(min(wanted, total) / group) * group
    count = max(count, min(group, total))
    return np.arange(count) * total // count


@contextmanager
def read_video(
    video: VideoLike, *, fps: float | None, sampling: Sampling | None, group: int
) -> Iterator[Frames]:
    """Open a video and choose its frames.

    Args:
        video: see `VideoLike`. A folder's pictures are taken in the order of their names, numbers
            in them counted (frame 10 comes after frame 9); hidden files are no frames. A file's
            frames are turned as its display matrix says.
        fps: its frames a second; default what the file says, else `ASSUMED_FPS`, which is said
            once.
        sampling: which frames to take; default `FILE_FPS` a second of a file, all frames else.
        group: frames that one patch spans.

    Yields:
        The frames; those of a file can be read only inside the context.

    Raises:
        CallError: nothing there, no frame, an array that is not frames, or no PyAV for a file.
        RunError: a file that cannot be decoded.
    """
    if fps is not None and not 0 < fps < math.inf:
        raise CallError(f"fps is {fps}: give the frames a second of the video, above 0")
    if isinstance(video, str | os.PathLike) and not Path(video).is_dir():
        plan = Sampling(fps=FILE_FPS) if sampling is None else sampling
        with _open_file(Path(video)) as (total, own_fps, decode):
            speed = own_fps if fps is None else fps
            yield _frames(f"video {str(video)!r}", total, speed, plan, group, decode)
        return
    plan = Sampling() if sampling is None else sampling
    name, pictures = _pictures(video)

    def read(indices: np.ndarray) -> Iterator[Image.Image]:
        return (open_image(pictures[index]) for index in indices)

    yield _frames(name, len(pictures), fps, plan, group, read)


def _frames(
    name: str,
    total: int,
    fps: float | None,
    sampling: Sampling,
    group: int,
    read: Callable[[np.ndarray], Iterator[Image.Image]],
) -> Frames:
    indices = sample_indices(total, fps, sampling, group)
    if fps is None:
        say_once(
            "frames a second",
            f"{name} does not say how many frames a second it has: {ASSUMED_FPS:g} are assumed; "
            "pass fps",
        )
        sampled = ASSUMED_FPS
    else:
        sampled = len(indices) / total * fps
    return Frames(name, indices, sampled, read)


def _pictures(video: VideoLike) -> tuple[str, Sequence[ImageLike]]:
    """(name, pictures) of frames that are given or lie in a folder."""
    if isinstance(video, str | os.PathLike):
        folder = Path(video)
        files = [path for path in _entries(folder) if _is_frame(path)]
        if not files:
            raise CallError(
                f"folder {str(folder)!r} has no pictures ({', '.join(FORMATS)}): give a folder of "
                "frames"
            )
        return f"folder {str(folder)!r}", sorted(files, key=_natural)
    if isinstance(video, np.ndarray):
        if video.ndim != 4 or video.dtype != np.uint8 or not len(video):
            raise CallError(
                "a video array is (frames, height, width, 3) of uint8, got "
                f"{video.shape} of {video.dtype}"
            )
        return "the video array", list(video)
    if isinstance(video, Image.Image) or not isinstance(video, Sequence):
        raise CallError(
            "a video is an array of frames, a list or a folder of pictures, or a file, got "
            f"{type(video).__name__}"
        )
    if not len(video):
        raise CallError("the video has no frames")
    return f"the video of {len(video)} pictures, first {name_of(video[0])},", video


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as problem:
        raise RunError(f"folder {str(folder)!r} cannot be read: {problem.strerror}") from problem


def _is_frame(path: Path) -> bool:
    """Whether a file of a folder is meant as a frame: systems leave hidden files among them."""
    form = Image.registered_extensions().get(path.suffix.lower())
    return form in FORMATS and not path.name.startswith(".") and not path.is_dir()


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key in which 10 comes after 9."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


@contextmanager
def _open_file(
    path: Path,
) -> Iterator[tuple[int, float | None, Callable[[np.ndarray], Iterator[Image.Image]]]]:
    """(frames, frames a second, reader) of a video file."""
    if not path.is_file():
        raise CallError(f"video {str(path)!r} does not exist")
    try:
        import av
    except ImportError as problem:
        raise CallError(
            f"reading the video file {str(path)!r} needs PyAV: pip install 'resprune-jax[video]', "
            "or give a folder or an array of frames"
        ) from problem
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise RunError(f"{str(path)!r} holds no video")
            stream = container.streams.video[0]
            total = stream.frames or _count(container)
            rate = stream.average_rate
            yield total, float(rate) if rate else None, lambda wanted: _decode(container, wanted)
    except ResPruneError:
        raise
    except av.error.FFmpegError as problem:
        reason = " ".join(str(problem).split())
        raise RunError(f"video {str(path)!r} cannot be read: {reason}") from problem


def _count(container: Any) -> int:
    """Frames of a file whose header does not say, by decoding it all."""
    total = sum(1 for _ in container.decode(video=0))
    container.seek(0)
    if not total:
        raise RunError(f"video {str(container.name)!r} holds no frame")
    return total


def _decode(container: Any, wanted: np.ndarray) -> Iterator[Image.Image]:
    """The frames with these ascending numbers, as RGB pictures."""
    targets = iter(wanted.tolist())
    target = next(targets, None)
    for number, frame in enumerate(container.decode(video=0)):
        if target is None:
            return
        if number == target:
            picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
            turn = _turn(frame)
            yield picture if turn is None else picture.transpose(turn)
            target = next(targets, None)


# Where a frame's axes go on the screen: the signs of (x to x, x to y, y to x, y to y).
_TURNS = {
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


def _turn(frame: Any) -> Image.Transpose | None:
    """How to turn a frame upright, as players do: a telephone's films lie on their side.

    The display matrix holds nine numbers in 16.16 fixed point, three a column of the file format
    (ISO/IEC 14496-12, section 6.2.2); other angles than quarter turns are left alone.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None or len(bytes(matrix)) < 36:
        return None
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix)[:36])
    sign = tuple((value > 2**15) - (value < -(2**15)) for value in (a, b, c, d))
    return _TURNS.get(sign)
