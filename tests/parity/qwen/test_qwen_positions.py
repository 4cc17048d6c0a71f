"""M-RoPE ids and deltas against transformers: exactly equal, on thousands of random prompts."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLModel

from resprune_jax.models.decoder.mrope import Grid, rope_index
from resprune_jax.models.images.video import Sampling, sample_indices
from tests.checkpoints.qwen_vl import IMAGE_TOKEN_ID, VIDEO_TOKEN_ID, tiny_config
from tests.parity.qwen.pairs import kinds


class Positions:
    """The part of the torch model that counts positions; it needs no weights."""

    get_vision_position_ids = Qwen2_5_VLModel.get_vision_position_ids
    get_rope_index = Qwen2_5_VLModel.get_rope_index

    def __init__(self, tokens_per_second: int) -> None:
        self.config = tiny_config()
        self.config.vision_config.tokens_per_second = tokens_per_second


def random_prompt(rng: np.random.Generator) -> tuple[list[int], list[Grid]]:
    """Ids with expanded placeholders, and the grids in their order."""
    ids = [7] * int(rng.integers(0, 6))
    grids: list[Grid] = []
    for _ in range(rng.integers(0, 4)):
        rows, columns = (int(n) for n in rng.integers(1, 9, 2))
        if rng.random() < 0.5:
            grid = Grid(1, rows, columns)
        else:
            grid = Grid(int(rng.integers(1, 7)), rows, columns, float(rng.uniform(0.05, 4)))
        holder = IMAGE_TOKEN_ID if grid.seconds is None else VIDEO_TOKEN_ID
        # Transformers tells two pictures apart by the words between them.
        words = int(rng.integers(ids[-1:] == [holder], 5))
        ids += [8] * words + [holder] * grid.num_tokens
        grids.append(grid)
    return ids + [9] * int(rng.integers(not ids, 9)), grids


def expected_index(
    reference: Positions, ids: np.ndarray, valid: np.ndarray, grids: list[list[Grid]], tensor: bool
) -> tuple[np.ndarray, np.ndarray]:
    """transformers' (positions (B, S, 3), deltas (B,))."""

    def table(video: bool) -> torch.Tensor | None:
        own = [g for row in grids for g in row if (g.seconds is not None) == video]
        sizes = [[g.frames, 2 * g.rows, 2 * g.columns] for g in own]
        return torch.tensor(sizes) if sizes else None

    seconds: Any = [g.seconds for row in grids for g in row if g.seconds is not None]
    places, deltas = reference.get_rope_index(
        torch.from_numpy(ids).long(),
        torch.from_numpy(kinds(ids)).int(),
        image_grid_thw=table(False),
        video_grid_thw=table(True),
        second_per_grid_ts=torch.tensor(seconds) if tensor else seconds,
        attention_mask=torch.from_numpy(valid).long(),
    )
    return places.permute(1, 2, 0).numpy(), deltas[:, 0].numpy()


@pytest.mark.parametrize("tokens_per_second", [2, 4, 25])
def test_ids_and_deltas_are_exactly_transformers(tokens_per_second: int) -> None:
    rng = np.random.default_rng(tokens_per_second)
    reference = Positions(tokens_per_second)
    prompts = visual = most = 0
    for trial in range(150):
        own = [random_prompt(rng) for _ in range(4)]
        length = max(len(ids) for ids, _ in own) + int(rng.integers(0, 4))
        ids = np.zeros((4, length), np.int32)
        valid = np.zeros((4, length), bool)
        for row, (real, _) in enumerate(own):
            left = trial % 2
            at = slice(length - len(real), length) if left else slice(0, len(real))
            ids[row, at], valid[row, at] = real, True
        grids = [row for _, row in own]
        want, deltas = expected_index(reference, ids, valid, grids, tensor=trial % 3 > 0)
        got = rope_index(kinds(ids), valid, grids, tokens_per_second)
        np.testing.assert_array_equal(got.positions, want)
        np.testing.assert_array_equal(got.deltas(valid), deltas)
        prompts, visual = prompts + 4, visual + int((kinds(ids) > 0).sum())
        most = max(most, int(want.max()))
    print(f"{prompts} prompts, {visual} visual tokens, positions up to {most}")
    assert prompts == 600 and visual > 10_000


def torch_indices(total: int, fps: float, sampling: Sampling, group: int) -> list[int]:
    """transformers' formula for the frames of a video, with torch's own arange."""
    if sampling.num_frames is not None:
        count = round(sampling.num_frames / group) * group
    else:
        assert sampling.fps is not None
        most = min(sampling.max_frames, total) // group * group
        wanted = min(max(total / fps * sampling.fps, sampling.min_frames), most, total)
        count = int(wanted / group) * group
    return torch.arange(0, total, total / count).int().tolist()


def test_sampled_frames_are_torch_s() -> None:
    rng = np.random.default_rng(0)
    compared = frames = beyond = 0
    for total in [*range(4, 200), *rng.integers(200, 20_000, 400).tolist()]:
        speed = float(rng.choice([12, 23.976, 24, 25, 29.97, 30, 60]))
        for sampling in (
            Sampling(fps=float(rng.choice([0.5, 1, 2, 4]))),
            Sampling(num_frames=2 * int(rng.integers(1, min(total, 768) // 2 + 1))),
        ):
            want = torch_indices(total, speed, sampling, 2)
            if want[-1] == total:
                # The rounding of total / count can give one frame that the video does not have.
                want, beyond = want[:-1], beyond + 1
            got = sample_indices(total, speed, sampling, 2)
            assert got.tolist() == want, (total, speed, sampling)
            compared, frames = compared + 1, frames + len(want)
    print(
        f"{compared} videos, {frames} frames; torch asks for one that is not there {beyond} times"
    )
    assert compared > 1000 and beyond < compared / 20
