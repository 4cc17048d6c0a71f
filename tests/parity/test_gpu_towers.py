"""Qwen's towers as a GPU runs them, on this machine's backend, against torch."""

from collections.abc import Iterator

import pytest

from resprune_jax.models.decoder import attention, gpu
from resprune_jax.models.towers.qwen_vision import rows as layout
from tests.parity.decoder import test_received_attention as received
from tests.parity.qwen import test_qwen as packed


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tables and programs made meanwhile are for a GPU without cuDNN."""
    programs = (packed.encode, received.encode)
    monkeypatch.setattr(gpu, "in_use", lambda: True)
    monkeypatch.setattr(gpu, "missing", lambda *_: "it is not here")
    for program in programs:
        program.clear_cache()
    yield
    for program in programs:
        program.clear_cache()


@pytest.mark.deep
@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize(
    ("room", "held"),
    [(4, 2**32), (0, 2**32), (4, 2**19)],
    ids=["a row each", "shared rows", "in parts"],
)
def test_packed_pictures_and_films(room: int, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "ROOM", room)
    monkeypatch.setattr(gpu, "HELD", held)
    with attention.paths_taken() as paths:
        packed.test_tower_and_merger_of_a_packed_batch()
    assert paths == ({"xla"} if held == 2**32 else {"xla", "parts"})


@pytest.mark.deep
@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("variant", ["untied", "qwen2"])
def test_received_attention(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert received.qwen(variant, monkeypatch)
