"""Two things that must come out right: a selection, and an answer of the pocket model."""

import importlib.util
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from resprune_jax.experiments.doctor.findings import Finding

if TYPE_CHECKING:
    import numpy as np

    from resprune_jax.selection import Selection

TOKENS, WIDTH, KEEP = 576, 128, 64
"""LLaVA-1.5's count of visual tokens and its smallest budget: what "auto" takes for them."""
ALPHA = 0.75

BUDGET = 48
"""Of the pocket model's 144 visual tokens."""

FAMILY = "reading"
"""Of the question that it is asked: what word is printed in the picture."""

_SEND = "send the project what resprune doctor --json prints"


def chosen(tokens: "np.ndarray", relevance: "np.ndarray") -> "Selection":
    """A selection as the models make it: the engine that "auto" takes here."""
    from resprune_jax import select

    return select(tokens, KEEP, relevance=relevance, alpha=ALPHA)


def selection() -> Iterator[Finding]:
    """Choose, and check every pick in float64."""
    import jax
    import numpy as np

    from resprune_jax.certificate import certify
    from resprune_jax.engines import resolve
    from resprune_jax.exact import TAU

    rng = np.random.default_rng(0)
    # Correlated, as visual tokens are.
    tokens = rng.normal(size=(TOKENS, WIDTH)) + 2 * rng.normal(size=WIDTH)  # [N, d]
    tokens = tokens.astype(np.float32)
    relevance = rng.uniform(size=TOKENS).astype(np.float32)  # [N]
    engine = resolve("auto", TOKENS, KEEP, WIDTH)
    began = time.perf_counter()
    made = chosen(tokens, relevance)
    picks, energy = np.asarray(made.indices), np.asarray(made.energy)
    seconds = time.perf_counter() - began
    found = certify(tokens, picks, relevance=relevance, alpha=ALPHA, energy=energy)
    facts = {
        "engine": engine, "backend": jax.default_backend(), "steps": found.steps,
        "decided": found.decided, "worst_slack": found.worst_slack,
        "violations": found.violations, "seconds": round(seconds, 2),
    }  # fmt: skip
    if found.ok:
        said = (
            f"engine {engine}: {KEEP} of {TOKENS} tokens, every pick certified in float64"
            f" (slack {found.worst_slack:.1g} of {TAU:.0e} allowed), {seconds:.1f} s with compiling"
        )
        yield Finding("selection", "ok", said, "", facts)
    else:
        said = (
            f"engine {engine} chose wrongly at {len(found.violations)} of {found.steps} steps:"
            f" {found.violations[0]}"
        )
        remedy = f"--method-settings engine=feature may do meanwhile; {_SEND}"
        yield Finding("selection", "FAULT", said, remedy, facts)


def answer() -> Iterator[Finding]:
    """Ask the pocket model a question of its test set, from a third of the visual tokens."""
    from resprune_jax.experiments.pocket import frozen_set, is_right, render
    from resprune_jax.models.load import load_model
    from resprune_jax.nouns import LEXICON, MODEL

    began = time.perf_counter()
    lvlm = load_model("pocket", dtype="float32")
    loaded = time.perf_counter()
    ((scene, questions),) = frozen_set(scenes=1)
    # No question of yes or no, which is answered right by chance.
    question = next(each for each in questions if each.family == FAMILY)
    tagger = MODEL if importlib.util.find_spec(MODEL) is not None else LEXICON
    made = lvlm.generate(
        [render(scene)], [question.prompt], keep=BUDGET, max_new_tokens=6, tagger=tagger
    )
    seconds = time.perf_counter() - loaded
    said, why = made.texts[0], made.errors[0]
    facts = {
        "question": question.question, "answer": said, "right": question.answer, "error": why,
        "kept": made.kept[0], "load_seconds": round(loaded - began, 2),
        "answer_seconds": round(seconds, 2),
    }  # fmt: skip
    asked = f"the pocket model was asked {question.question!r}"
    if why is not None:
        yield Finding("answer", "FAULT", f"{asked} and failed: {why}", _SEND, facts)
    elif not is_right(said, question.answer):
        wrong = f"{asked} and said {said!r} where {question.answer!r} is right"
        yield Finding("answer", "FAULT", wrong, _SEND, facts)
    else:
        right = (
            f"{asked} and said {said!r}, which is right, from {made.kept[0]} of"
            f" {lvlm.config.num_visual_tokens} visual tokens,"
            f" {loaded - began:.1f} + {seconds:.1f} s"
        )
        yield Finding("answer", "ok", right, "", facts)
