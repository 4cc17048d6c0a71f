"""The fuzzer of configurations finds checks that are missing, in its first hundreds of seeds."""

from typing import Any

import pytest

from resprune_jax.models.decoder import config as decoder
from resprune_jax.models.families.llava import images
from resprune_jax.models.families.qwen_vl import config as qwen
from resprune_jax.models.prompts import generation_file
from resprune_jax.models.towers import config as towers
from resprune_jax.models.towers.qwen_vision import config as qwen_vision
from tests.attacks import harness
from tests.attacks.fuzzers import configs
from tests.attacks.inputs.checkpoints import FAMILIES
from tests.attacks.inputs.fields import Field

pytestmark = pytest.mark.deep

(FUZZER,) = configs.FUZZERS


def _unread(what: str, value: Any, *_: Any) -> Any:
    return value


def _any_section(hf: Any, head_dim: int) -> Any:
    return tuple(qwen.rope_settings(hf).get("mrope_section", (16, 24, 24)))


# A check taken away, and the family, file and field whose first visit shows it.
PLANTED: dict[str, tuple[Any, str, Any, Field]] = {
    "vision layers": (
        towers, "layers", _unread,
        Field("llava", "config.json", ("vision_config", "num_hidden_layers")),
    ),
    "vision blocks": (
        qwen_vision, "layers", _unread,
        Field("qwen2_5_vl", "config.json", ("vision_config", "depth")),
    ),
    "mrope section": (
        qwen, "_mrope_section", _any_section,
        Field("qwen2_5_vl", "config.json", ("rope_scaling", "mrope_section")),
    ),
    "heads that do not divide": (
        qwen_vision, "divides", lambda *_: None,
        Field("qwen2_vl", "config.json", ("vision_config", "num_heads")),
    ),
    "vocabulary": (
        decoder, "size", _unread, Field("interleave", "config.json", ("text_config", "vocab_size")),
    ),
    "crop": (
        images.ImageProcessor, "_check", lambda *_: None,
        Field("llava", "preprocessor_config.json", ("crop_size",)),
    ),
    "ids": (
        generation_file, "_READERS", {**generation_file._READERS, "suppress_tokens": _unread},
        Field("llava_onevision", "generation_config.json", ("suppress_tokens",)),
    ),
}  # fmt: skip


@pytest.mark.deep
@pytest.mark.parametrize("what", PLANTED)
def test_a_missing_check_is_found(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name, fault, field = PLANTED[what]
    seed = 2 * configs.visits().index(field) + 1
    assert seed < 2 * len(configs.visits()) < 1300
    good = harness.attempt(FUZZER, seed)
    assert good.good, good
    monkeypatch.setattr(where, name, fault)
    found = harness.attempt(FUZZER, seed)
    assert not found.good, found


def test_fields_that_a_reader_asks_for_are_visited_though_no_file_has_them() -> None:
    asked = {(field.family, field.path) for field in configs.visits()}
    assert ("llava", ("text_config", "sliding_window")) not in asked
    assert ("llava", ("text_config", "head_dim")) in asked
    assert ("qwen2_5_vl", ("vision_config", "rope_theta")) in asked
    assert {family for family, _ in asked} == set(FAMILIES)
