"""The checks of `resprune verify`, in the order of the pipeline: ours against the reference.

A check gives our part what the reference's own part was given, so that a failure points at one
stage; only the lines that say so run the whole path.
"""

import dataclasses
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from resprune_jax.errors import ResPruneError
from resprune_jax.experiments.verify import findings
from resprune_jax.experiments.verify.findings import Finding
from resprune_jax.experiments.verify.ours import Ours
from resprune_jax.experiments.verify.reference import (
    NEW_TOKENS,
    TEXTS,
    sample_places,
)
from resprune_jax.models.checkpoint.reading import CheckpointError
from resprune_jax.models.prompts import buckets


@dataclasses.dataclass(frozen=True)
class Check:
    """A line of the report.

    Attributes:
        name: what was checked.
        state: "passed", "FAILED", or "not run" where what it needs is missing.
        found: the measured error against its bound, or what differs.
        means: of a failure, what it likely means.
    """

    name: str
    state: str
    found: str
    means: str = ""


@partial(jax.jit, static_argnums=0)
def _tower(graph: Any, state: Any, inputs: Any) -> Any:
    """(features, scores of the class token or None) of the vision tower alone."""
    return nnx.merge(graph, state).vision_features(inputs)


@partial(jax.jit, static_argnums=0)
def _apply(graph: Any, state: Any, x: Any) -> Any:
    return nnx.merge(graph, state)(x)


def keys_and_shapes(ours: Ours) -> Finding:
    """Both sides read every tensor."""
    there = "; ".join(ours.reference.problems)
    try:
        state = ours.lvlm.state
    except CheckpointError as error:
        return Finding(False, "; ".join(error.problems), findings.KEYS)
    if there:
        return Finding(False, f"transformers reports {there}", findings.KEYS)
    return Finding(True, f"{len(nnx.to_flat_state(state))} parameters, all found, none unknown")


def weights(ours: Ours) -> Finding:
    """Some values of every parameter, bit for bit: layers in their places, none transposed."""
    keys = ours.config.form.keys
    wrong, count, values = [], 0, 0
    for path, leaf in nnx.to_flat_state(ours.lvlm.state):
        value = np.asarray(leaf[...])
        for source in keys.sources_of(tuple(map(str, path)), leaf.shape):
            own = source.as_stored(value)
            places = sample_places(source.key, own.size)
            got = own[np.unravel_index(places, own.shape)]
            want = ours.reference.weights.get(source.key)
            count, values = count + 1, values + len(places)
            if want is None or not np.array_equal(got.astype(np.float32), want):
                wrong.append(source.key)
    if wrong:
        found = f"{len(wrong)} of {count} parameters differ: {findings.places_of(wrong)}"
        return Finding(False, found, findings.WEIGHTS)
    return Finding(True, f"{values} values of {count} parameters, equal bit for bit")


def tokenizer(ours: Ours) -> Finding:
    """Ids of sample texts, of the placeholder and of the end of an answer."""
    read = ours.encoder.tokenizer
    own = [tuple(read(text, add_special_tokens=False)["input_ids"]) for text in TEXTS]
    reference = ours.reference
    for text, here, there in zip(TEXTS, own, reference.samples, strict=True):
        if here != there:
            at = findings.first_difference(here, there)
            return Finding(False, f"{text!r}: {at}", findings.TOKENIZER)
    if ours.encoder.image_token_id != reference.placeholder:
        found = f"placeholder {ours.encoder.image_token_id} here, {reference.placeholder} there"
        return Finding(False, found, findings.TOKENIZER)
    ends = set(ours.encoder.eos_ids.tolist())
    if ends != set(reference.eos):
        found = f"an answer ends with {sorted(ends)} here, {sorted(reference.eos)} there"
        return Finding(False, found, findings.EOS)
    return Finding(True, f"{sum(map(len, own))} ids of {len(TEXTS)} texts equal")


def bos(ours: Ours) -> Finding:
    """How many BOS ids begin the prompt."""
    prompt = ours.encoder.encode(ours.reference.text, chat_template=False)
    counts = [_leading(ids, ours.reference.bos) for ids in (prompt.ids, ours.reference.ids)]
    same = counts[0] == counts[1]
    return Finding(same, f"{counts[0]} here, {counts[1]} there", "" if same else findings.BOS)


def _leading(ids: np.ndarray, bos: int | None) -> int:
    """How many ids at the front are BOS."""
    return int(np.argmin(np.append(ids == bos, False))) if bos is not None else 0


def chat_template(ours: Ours) -> Finding:
    """The text that the model sees."""
    here, there = ours.encoder.encode(ours.question).text, ours.reference.text
    if here != there:
        at = findings.first_difference(here, there)
        return Finding(False, at, findings.TEMPLATE)
    if not ours.reference.templated:
        return Finding(True, "the checkpoint has none: Vicuna's is used, nothing to compare with")
    return Finding(True, f"{len(here)} characters equal")


def prompt_ids(ours: Ours) -> Finding:
    """Ids of the reference's text, each placeholder expanded."""
    from resprune_jax.models.prompts.expansion import expand

    prompt = ours.encoder.encode(ours.reference.text, chat_template=False)
    counts = [image.tokens for image in ours.pictures.layouts[0]]
    ids, _ = expand(prompt.ids, ours.encoder.image_token_id, counts)
    if not np.array_equal(ids, ours.reference.ids):
        at = findings.first_difference(ids.tolist(), ours.reference.ids.tolist())
        return Finding(False, at, findings.PROMPT)
    return Finding(True, f"{len(ids)} ids equal, {counts[0]} of them visual tokens")


def positions(ours: Ours) -> Finding:
    """Position ids of the full prompt."""
    ids, there = ours.reference.ids[None], ours.reference.positions
    rope = ours.family.rope(ids, np.ones(ids.shape, bool), ours.pictures.layouts)
    here = np.arange(ids.shape[1]) if rope is None else np.asarray(rope.positions[0])
    if here.shape != there.shape or (here != there).any():
        at = findings.first_difference(here.tolist(), there.tolist())
        return Finding(False, at, findings.POSITIONS)
    return Finding(True, f"{here.size} equal, up to {here.max()}")


def pixels(ours: Ours) -> Finding:
    """What the image processor gives; the same resizing code, so nothing may differ."""
    return findings.pixels(ours.own_pixels, ours.reference.pixels)


def vision_features(ours: Ours) -> Finding:
    """The vision tower on the reference's pixels."""
    made = _tower_output(ours)[0]
    return findings.near(made, ours.reference.features, ours.dtype, findings.TOWER)


def cls_attention(ours: Ours) -> Finding:
    """The class token's attention, which the seed rule reads."""
    made = _tower_output(ours)[1]
    assert made is not None and ours.reference.saliency is not None
    return findings.near_share(made, ours.reference.saliency, ours.dtype, findings.CLASS_TOKEN)


def _tower_output(ours: Ours) -> tuple[np.ndarray, np.ndarray | None]:
    inputs = ours.family.tower_inputs(ours.reference.pixels, ours.reference.grid)
    made, scores = _tower(*nnx.split(ours.module), inputs)
    count = len(ours.reference.features)
    return np.asarray(made, np.float32)[:count], None if scores is None else np.asarray(scores)


def projector_output(ours: Ours) -> Finding:
    """The projector (merger) on the reference's features."""
    given = jnp.asarray(ours.reference.features, ours.dtype)
    made = np.asarray(_apply(*nnx.split(ours.module.projector), given), np.float32)
    return findings.near(made, ours.reference.projected, ours.dtype, findings.PROJECTOR)


def visual_tokens(ours: Ours) -> Finding:
    """Tower, projector and packing together: their number, order and newline tokens."""
    own = np.asarray(ours.encoded.embeddings[0], np.float32)[np.asarray(ours.encoded.valid[0])]
    want = ours.reference.embeddings
    if own.shape != want.shape:
        found = f"{len(own)} visual tokens here, {len(want)} there"
        return Finding(False, found, findings.PACKING)
    return findings.near(own, want, ours.dtype, findings.PACKING)


def logits(ours: Ours, *, pruned: bool) -> Finding:
    """The language model on the reference's visual tokens, all of them or the kept ones."""
    lvlm, reference = ours.lvlm, ours.reference
    made, _ = lvlm.programs.score(lvlm.parameters, *ours.assembled(pruned=pruned)[:3])
    rows = reference.pruned_rows if pruned else reference.rows
    want = reference.pruned_logits if pruned else reference.logits
    return findings.logits(np.asarray(made[0])[rows], want, rows, ours.dtype, pruned=pruned)


def whole_logits(ours: Ours) -> Finding:
    """Picture and question through `LVLM.logits`, as a user calls it."""
    made, valid = ours.lvlm.logits(ours.picture, ours.question)
    count, reference = int(np.asarray(valid).sum()), ours.reference
    if count != len(reference.ids):
        found = f"{count} positions here, {len(reference.ids)} there"
        return Finding(False, found, findings.WHOLE)
    rows = reference.rows
    return findings.near_logits(
        np.asarray(made[0])[rows], reference.logits, ours.dtype, findings.WHOLE
    )


def tokens(ours: Ours) -> Finding:
    """The answer's first tokens by `LVLM.generate`, as a user calls it."""
    made = ours.lvlm.generate(ours.picture, ours.question, method="none", max_new_tokens=NEW_TOKENS)
    if made.errors[0] is not None:
        return Finding(False, made.errors[0], findings.WHOLE)
    ours.answer = made.texts[0]
    return findings.continued(made.tokens[0], ours.reference.full, ours.dtype)


def selection(ours: Ours) -> Finding:
    """Our picks among the reference's visual tokens, against the float64 oracle."""
    made = ours.lvlm.choose(ours.call(pruned=True)).selection
    assert made is not None  # the prompt has a budget
    return findings.picks(np.asarray(made.indices[0])[: int(made.count[0])], ours.reference)


def pruned_tokens(ours: Ours) -> Finding:
    """Greedy tokens from the kept visual tokens: cache and positions of the answer."""
    lvlm, slots = ours.lvlm, buckets.new_token_bucket(NEW_TOKENS)
    rules = lvlm.rules(ours.call(pruned=True))
    x, places, count, position = ours.assembled(pruned=True)
    scores, cache = lvlm.programs.prefill(lvlm.parameters, x, places, count, slots=slots)
    buffer, _ = lvlm.programs.decode(
        lvlm.parameters, cache, scores, position, np.int32(NEW_TOKENS), ours.encoder.eos_ids,
        np.uint32(0), np.float32(1), np.float32(1), rules=rules, slots=slots, greedy=True,
    )  # fmt: skip
    row = np.asarray(buffer[0])
    return findings.continued(row[row >= 0], ours.reference.pruned, ours.dtype)


STEPS: dict[str, Callable[[Ours], Finding]] = {
    "keys and shapes": keys_and_shapes,
    "weights": weights,
    "tokenizer": tokenizer,
    "BOS": bos,
    "chat template": chat_template,
    "image pixels": pixels,
    "prompt ids": prompt_ids,
    "positions": positions,
    "vision features": vision_features,
    "CLS attention": cls_attention,
    "projector output": projector_output,
    "visual tokens": visual_tokens,
    "logits, full": partial(logits, pruned=False),
    "logits, whole path": whole_logits,
    "greedy tokens, full": tokens,
    "selection": selection,
    "logits, pruned": partial(logits, pruned=True),
    "greedy tokens, pruned": pruned_tokens,
}
"""The checks by name, in the order of the pipeline."""


def run_checks(ours: Ours, *, until: str | None = None, debug: bool = False) -> Iterator[Check]:
    """Run the checks one after the other; a failure stops none of them.

    Args:
        ours: our side.
        until: the last check to run; default all.
        debug: print the traceback of an error that no check foresaw.

    Yields:
        A line each.
    """
    loaded = True
    for name, step in STEPS.items():
        if name == "CLS attention" and ours.reference.saliency is None:
            continue
        if not loaded and name not in findings.WITHOUT_WEIGHTS:
            yield Check(name, "not run", "the weights were not loaded")
        else:
            with jax.default_matmul_precision("highest"):
                yield _line(name, step, ours, debug)
        loaded = loaded and "lvlm" in ours.__dict__
        if name == until:
            return


def _line(name: str, step: Callable[[Ours], Finding], ours: Ours, debug: bool) -> Check:
    try:
        found = step(ours)
    except ResPruneError as error:
        return Check(name, "FAILED", str(error), "our own check refused to go on")
    except Exception as error:  # the report goes on: what else works narrows it down
        if debug:
            traceback.print_exc()
        words = " ".join(str(error).split())[:300]
        return Check(name, "FAILED", f"{type(error).__name__}: {words}", findings.BUG)
    return Check(name, "passed" if found.passed else "FAILED", found.text, found.means)
