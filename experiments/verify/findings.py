"""How `resprune verify` compares two arrays, and what it says of a difference."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from resprune_jax.experiments.verify.reference import Continued, Reference

BOUNDS = {"float32": 1e-5, "bfloat16": 0.05}
"""The largest error that passes, as a share of the reference's standard deviation. In float32 it is
the error of the worst value, and tells an epsilon from another. In bfloat16 every activation has 8
bits and both sides round differently from the first layer on, so it is the root mean square: 0.008
to 0.012 of three layers, 0.020 of twelve were measured, and only gross faults show."""

CLOSE = 10
"""Up to so many times the bound, rounding is likelier than a fault: planted faults cost more."""

WITHOUT_WEIGHTS = ("tokenizer", "BOS", "chat template", "image pixels", "prompt ids", "positions")
"""The checks that need no weights."""

KEYS = "the checkpoint's keys or shapes are not what config.json promises, or of a new dialect"
WEIGHTS = "these parameters are read from another place or layout than in torch"
TOKENIZER = "another tokenizer: tokenizer.json differs, or the tokenizers package reads it anew"
EOS = "generation_config.json, the tokenizer and config.json disagree on eos_token_id"
BOS = "the tokenizer adds BOS beside the template's own, or leaves it out (add_bos_token)"
TEMPLATE = "another chat template is found here: chat_template.jinja, chat_template.json, tokenizer"
PROMPT = "the number of visual tokens, BOS, or the placeholder's place differ"
POSITIONS = "M-RoPE: the grid of the picture, spatial_merge_size, or transformers' rule changed"
PIXELS = "resizing, cropping or tiling: size, crop_size, resample, or the pixel limits"
MEAN = "each channel is off by one number: image_mean"
SCALE = "each channel is scaled: image_std or rescale_factor"
TOWER = "layer_norm_eps, hidden_act (quick_gelu or gelu), vision_feature_layer, patches or windows"
CLASS_TOKEN = "the block whose attention is read, or how its heads are averaged"
PROJECTOR = "projector_hidden_act (exact gelu or tanh), its biases, or the merger's norm"
PACKING = "if the two lines above pass: unpadding, newline tokens, or the order of tokens"
WHOLE = "if the lines above pass: how generate joins them; else it follows from them"
FROM_START = (
    "wrong from the first token on, which sees only itself: rms_norm_eps, hidden_act, a layer's"
    " weights or place, or the head"
)
WITH_POSITION = (
    "right at the first token and wrong behind it: rope_theta, rope scaling, positions, the mask"
    " or sliding_window"
)
DECODING = "if the logits pass: the cache, the positions of the answer, or its end"
PICKS = "the selection engine on this device; the line names the first pick that breaks the rule"
BUG = "a bug here or an API of transformers that changed: run again with --debug"
ROUNDING = "near the bound: rounding (another BLAS, TF32) is likelier than a fault"


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        passed: whether it did.
        text: the measured error against its bound, or what differs.
        means: of a failure, what it likely means.
    """

    passed: bool
    text: str
    means: str = ""


def _judged(error: float, bound: float, text: str, means: str) -> Finding:
    """A measured error against its bound."""
    times = error / bound
    # Not `error > bound`: a NaN fails.
    if not error <= bound:
        means = f"{ROUNDING}; else {means}" if times <= CLOSE else means
        return Finding(False, f"{text}, bound {bound:.1e}: {_times(times)} the bound", means)
    return Finding(True, f"{text}, bound {bound:.1e}")


def _times(value: float) -> str:
    return f"{value:.1f} times" if value < 100 else f"{value:,.0f} times"


def _error(got: np.ndarray, want: np.ndarray, dtype: str, axis: int | None = None) -> Any:
    """The worst error of float32, the root mean square of bfloat16."""
    off = np.abs(got.astype(np.float64) - want)
    return off.max(axis) if dtype == "float32" else np.sqrt(np.mean(off**2, axis))


def _what(dtype: str) -> str:
    return "max|d|" if dtype == "float32" else "rms d"


def near(got: np.ndarray, want: np.ndarray, dtype: str, means: str) -> Finding:
    """Activations: the error, as a share of their deviation."""
    if got.shape != want.shape:
        return Finding(False, f"shape {got.shape} here, {want.shape} there", means)
    error, deviation = float(_error(got, want, dtype)), float(want.std())
    text = f"{want.size} values, {_what(dtype)} {error:.1e} of std {deviation:.2g}"
    return _judged(error, BOUNDS[dtype] * max(deviation, 1e-30), text, means)


def near_share(got: np.ndarray, want: np.ndarray, dtype: str, means: str) -> Finding:
    """Probabilities: the error, as a share of the largest of them."""
    if got.shape != want.shape:
        return Finding(False, f"shape {got.shape} here, {want.shape} there", means)
    error, largest = float(_error(got, want, dtype)), float(want.max())
    text = f"{want.size} values, {_what(dtype)} {error:.1e} of {largest:.2g} at most"
    return _judged(error, BOUNDS[dtype] * largest, text, means)


def logits_bound(want: np.ndarray, dtype: str) -> float:
    """The project's parity bound, 1e-5 max(1, std), with the dtype's share."""
    there = want[np.isfinite(want)]  # settings rule ids out
    return BOUNDS[dtype] * max(1.0, float(there.std()))


def near_logits(got: np.ndarray, want: np.ndarray, dtype: str, means: str) -> Finding:
    """Logits: the error, and how often the likeliest token is the same one."""
    error = float(_error(got, want, dtype))
    same = int((got.argmax(axis=-1) == want.argmax(axis=-1)).sum())
    text = (
        f"{want.shape[0]} positions, {_what(dtype)} {error:.1e} of std {want.std():.2g},"
        f" same likeliest token at {same}"
    )
    return _judged(error, logits_bound(want, dtype), text, means)


def logits(
    got: np.ndarray, want: np.ndarray, rows: np.ndarray, dtype: str, *, pruned: bool
) -> Finding:
    """`near_logits` of the positions `rows`; a failure says where it begins.

    Rotary positions do not matter to the first token, which sees nothing but itself.
    """
    bound = logits_bound(want, dtype)
    bad = ~(_error(got, want, dtype, -1) <= bound)  # [R]
    means = FROM_START if bad[0] else WITH_POSITION
    if pruned:
        means += "; if the full logits pass: the kept tokens' order and positions"
    found = near_logits(got, want, dtype, means)
    if found.passed:
        return found
    where = f"; {int(bad.sum())} positions, the first is {rows[np.argmax(bad)]}"
    return dataclasses.replace(found, text=found.text + where)


def continued(got: np.ndarray, want: Continued, dtype: str) -> Finding:
    """Greedy tokens: equal up to the first tie that rounding may decide either way."""
    size = min(len(got), len(want.tokens))
    differs = np.flatnonzero(got[:size] != want.tokens[:size])
    if not len(differs):
        if len(got) == len(want.tokens):
            return Finding(True, f"{size} of {size} equal")
        text = f"{len(got)} tokens here, {len(want.tokens)} there, equal as far as they go"
        return Finding(False, text, DECODING)
    at = int(differs[0])
    scores = want.logits[at]
    behind = float(scores[want.tokens[at]] - scores[got[at]])  # inf for an id that is ruled out
    # Two logits of one row, each off by the worst error, or by a few times the mean one.
    room = (2 if dtype == "float32" else 6) * logits_bound(want.logits, dtype)
    text = (
        f"{at} equal, then {got[at]} here and {want.tokens[at]} there, whose logits differ by"
        f" {behind:.1e}"
    )
    if behind <= room:
        return Finding(True, f"{text}: a tie within rounding ({room:.1e})")
    return Finding(False, f"{text} (a tie is up to {room:.1e})", DECODING)


def picks(got: np.ndarray, reference: Reference) -> Finding:
    """Our picks against the float64 oracle's; a near tie is settled by the step certificate."""
    want = reference.picks
    if np.array_equal(got, want):
        return Finding(True, f"{len(want)} of {len(want)} picks are the float64 oracle's")
    from resprune_jax.certificate import certify

    held = certify(
        reference.embeddings, got, relevance=reference.relevance, alpha=reference.alpha,
        first=int(want[0]), count=len(got),
    )  # fmt: skip
    if not held.ok:
        return Finding(False, held.violations[0], PICKS)
    same = int((got == want[: len(got)]).sum())
    text = f"{same} of {len(want)} picks are the float64 oracle's, the others near ties (certified)"
    return Finding(True, text)


def pixels(got: np.ndarray, want: np.ndarray) -> Finding:
    """Pixels, bit for bit; a failure is told apart by channel."""
    if got.shape != want.shape:
        return Finding(False, f"shape {got.shape} here, {want.shape} there", PIXELS)
    if np.array_equal(got, want):
        return Finding(True, f"{got.size} values, equal bit for bit")
    # Tiles are (T, 3, H, W); a patch is (3, frames, side, side), flattened.
    ours, theirs = (_by_channel(x) for x in (got, want))
    text = f"max|d| {_error(got, want, 'float32'):.1e}, bound 0"
    means = PIXELS
    slopes = [np.polyfit(x, y, 1)[0] for x, y in zip(theirs, ours, strict=True)]
    fits = [np.ptp(y - s * x) for s, x, y in zip(slopes, theirs, ours, strict=True)]
    if max(fits) < 1e-3:
        off = [float((y - x).mean()) for x, y in zip(theirs, ours, strict=True)]
        flat = max(abs(s - 1) for s in slopes) < 1e-3
        means = MEAN if flat else SCALE
        which = off if flat else slopes
        text += f", by channel {', '.join(f'{x:.4f}' for x in which)}"
    return Finding(False, text, means)


def _by_channel(x: np.ndarray) -> np.ndarray:
    """(3, values) float64."""
    if x.ndim == 2:
        x = x.reshape(len(x), 3, -1)
    return np.moveaxis(x, 1, 0).reshape(3, -1).astype(np.float64)


def first_difference(here: Sequence[Any], there: Sequence[Any]) -> str:
    """Where two texts or lists part, with what stands there."""
    size = min(len(here), len(there))
    at = next((i for i in range(size) if here[i] != there[i]), size)
    shown = [repr(x[at : at + (24 if isinstance(x, str) else 4)]) for x in (here, there)]
    lengths = "" if len(here) == len(there) else f" (lengths {len(here)} and {len(there)})"
    return f"from place {at} on {shown[0]} here, {shown[1]} there{lengths}"


def places_of(keys: Iterable[str]) -> str:
    """Parameters by the block they belong to, each named once."""
    names: dict[str, int] = {}
    for key in keys:
        block = re.match(r".*?\.(?:layers|blocks)\.\d+", key)
        name = block[0] if block else key
        names[name] = names.get(name, 0) + 1
    shown = sorted(names)[:6]
    more = f" and {len(names) - len(shown)} more places" if len(names) > len(shown) else ""
    return ", ".join(shown) + more
