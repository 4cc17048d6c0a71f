"""What a user meets besides answers: the command line, pictures, videos, nouns."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resprune_jax.experiments.answer.overlay import overlay
from resprune_jax.experiments.pocket.scenes.frozen import frozen_set
from resprune_jax.experiments.pocket.scenes.scene import render
from resprune_jax.models.images.video import read_video
from resprune_jax.prompts import NounExtractor


@pytest.mark.deep  # `make test-core` runs it everywhere
def test_the_command_answers_rows_about_pictures(tmp_path: Path) -> None:
    """In a process of its own, with the model that ships: most questions are answered rightly."""
    rows = []
    for number, (drawn, questions) in enumerate(frozen_set("cpu", 6)):
        Image.fromarray(render(drawn)).save(tmp_path / f"{number}.png")
        rows += [
            {"image": f"{number}.png", "prompt": each.question, "id": each.answer}
            for each in questions
        ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["answer", "--model", "pocket", "--rows", "rows.jsonl", "--output", "out.jsonl"]
    more = ["--keep", "48", "--max-new-tokens", "4"]
    done = subprocess.run(
        [sys.executable, "-m", "resprune_jax.experiments.cli", *words, *more],
        cwd=tmp_path, capture_output=True, text=True, encoding="utf-8",
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(results) == len(rows) and {result["kept"] for result in results} == {48}
    right = sum(result["answer"] == result["id"] for result in results)
    print(f"{right} of {len(rows)} right, from a third of the visual tokens")
    assert right >= 0.8 * len(rows)


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    path = overlay(
        Image.new("RGB", (168, 112), (200, 100, 50)), [("all", None), ("few", [0, 5, 9])], (4, 6),
        path=tmp_path / "kept.png", question="What is it?", image_aspect="processor", image_size=84,
    )  # fmt: skip
    with Image.open(path) as drawn:
        assert drawn.width > 400 and len(set(drawn.convert("L").tobytes())) > 10


def test_a_video_file_is_read(tmp_path: Path) -> None:
    """Eight frames that brighten, four a second: every other one is taken, in its order."""
    import av

    path = tmp_path / "brighter.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(8):
            pixels = np.full((48, 64, 3), 20 + 25 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with read_video(path, fps=None, sampling=None, group=2) as frames:
        assert frames.indices.tolist() == [0, 2, 4, 6] and frames.sampled_fps == 2
        levels = [np.asarray(frame).mean() for frame in frames]
    assert levels == pytest.approx([20, 70, 120, 170], abs=8)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp"])
def test_a_picture_file_is_read(suffix: str, tmp_path: Path) -> None:
    from resprune_jax.models.images.files import open_image

    path = tmp_path / f"picture.{suffix}"
    Image.new("RGB", (30, 20), (200, 100, 50)).save(path)
    image = open_image(path)
    assert image.size == (30, 20)
    assert np.abs(np.asarray(image).mean((0, 1)) - [200, 100, 50]).max() < 8


def test_nouns_by_the_tagger_that_is_always_there() -> None:
    tagger = NounExtractor("lexicon")
    assert tagger.backend.startswith("lexicon (textblob ")
    for prompt, nouns in {
        "What colour is the umbrella of the woman?": ["colour", "umbrella", "woman"],
        "How many dogs are there in this picture?": ["dogs", "picture"],
        "Is it raining?": [],
    }.items():
        assert [noun.text for noun in tagger.extract(prompt)] == nouns
