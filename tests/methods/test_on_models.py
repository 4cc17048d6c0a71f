"""Every method on every family: what runs keeps what was asked, what cannot is refused by name."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest

from resprune_jax.choices import METHODS
from resprune_jax.errors import CallError
from resprune_jax.methods import get_method, method_class
from resprune_jax.models import LVLM, load_model
from tests.checkpoints.llava import tiny_llava
from tests.checkpoints.llava_next import tiny_next
from tests.checkpoints.onevision import tiny_onevision
from tests.checkpoints.qwen_vl import tiny_qwen
from tests.checkpoints.siglip import tiny_interleave

FAMILIES = {
    "llava": tiny_llava,
    "next": tiny_next,
    "qwen": tiny_qwen,
    "interleave": tiny_interleave,
    "onevision": tiny_onevision,
}
CLASS_TOKEN = ("llava", "next")
REQUIRED = {"agilepruner": {"average": 3.0, "most": 0.5}}
QUESTIONS = ["What colour is the dog?", "Is there a red car near the tree?"]


@cache
def model(family: str) -> LVLM:
    return load_model(FAMILIES[family](Path(mkdtemp()) / family), dtype="float32")


@pytest.mark.parametrize(
    "family", ["llava", *(pytest.param(f, marks=pytest.mark.deep) for f in list(FAMILIES)[1:])]
)
def test_every_method(family: str, photographs: Any) -> None:
    lvlm = model(family)
    images = list(photographs[:2])
    ran = []
    for name in METHODS:
        cls = method_class(name)
        if cls.stage != "tokens":
            continue
        # As somebody writes it: by name. ResPrune alone has settings of each family.
        call: dict[str, Any] = {"method": name, "method_settings": REQUIRED.get(name, {})}
        needs = get_method(name, REQUIRED.get(name)).needs
        if "saliency" in needs and family not in CLASS_TOKEN and name != "resprune":
            with pytest.raises(CallError, match=f"{cls.__name__} reads saliency"):
                lvlm.select(images, QUESTIONS, keep=5, **call)
            continue
        made = lvlm.select(images, QUESTIONS, keep=[5, 0.25], **call)
        ran.append(name)
        assert made.errors == [None, None]
        total = made.visual_tokens[1]
        assert made.kept == [5, round(0.25 * total)], name
        assert made.mask.sum(axis=1).tolist() == made.kept
        # In another batch, the same; what is compiled is the same too.
        other = lvlm.select(images[::-1], QUESTIONS[::-1], keep=[0.25, 9], **call)
        own = np.flatnonzero(other.mask[0]).tolist()
        assert own == np.flatnonzero(made.mask[1]).tolist(), name
    print(f"{family}: {len(ran)} methods ran: {', '.join(ran)}")
    assert {"random", "uniform", "divprune", "resprune"} <= set(ran)
    assert ("fastervlm" in ran) == (family in CLASS_TOKEN)
