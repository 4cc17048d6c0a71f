"""What `resprune verify` keeps of the reference: small NumPy arrays, neither torch nor JAX."""

import dataclasses
import zlib
from collections.abc import Mapping

import numpy as np

NEW_TOKENS = 16
KEPT = 64
"""Visual tokens of the pruned checks, at most; never more than a third of them."""

ROWS = 256
"""Positions whose logits are compared, spread over the prompt; all of a shorter one."""

SAMPLES = 64
"""Values of every parameter that are compared."""

TEXTS = (
    "What is on the table next to the window?",
    "  Two  blanks,\ttabs\nand line ends.\n\n",
    "1234567890 3.14159 -42 50% (a+b)*c == d[0]",
    "naïve café Ångström ß, 你好世界, Привет, مرحبا, 日本語",
    "emoji 🦜🌍 and a zero-width\u200bspace",
    "USER: <s> is no token here </s> ASSISTANT:",
)
"""What both tokenizers are given."""


@dataclasses.dataclass(frozen=True)
class Continued:
    """Greedy tokens and the logits that they were taken from.

    Attributes:
        tokens: (T,) ids, up to and with the end-of-sequence id.
        logits: (T, V) float32, -inf for ids that the checkpoint's settings rule out.
    """

    tokens: np.ndarray
    logits: np.ndarray


@dataclasses.dataclass(frozen=True)
class Reference:
    """What transformers made of a checkpoint, a picture and a question.

    Attributes:
        processor: the classes of its processor and image processor.
        notes: what was done to make them work, for the report.
        samples: ids of `TEXTS`.
        eos: ids that end an answer.
        bos: the id that begins a text, or None.
        templated: whether the checkpoint has a chat template; else the text is Vicuna's.
        text: the prompt, placeholder not expanded.
        ids: (S,) the prompt's ids, placeholders expanded.
        placeholder: the placeholder's id.
        pixels: what the vision tower takes: (T, 3, H, W) tiles or (P, values) patches.
        grid: (t, h, w) of the picture in patches where it is one grid of them, else None.
        weights: by canonical name, `sample` of every tensor.
        problems: what transformers says of keys that do not fit.
        features: (..., v) what the projector takes, in the order of `pixels`.
        saliency: (T, N) attention of each tile's class token, or None.
        projected: (..., d) what the projector gives, in the order of `pixels`.
        embeddings: (N, d) the visual tokens as they enter the language model.
        newline: (N,) bool, those that are LLaVA-NeXT's newline token.
        positions: (S,) or (S, 3) the prompt's position ids.
        rows: (R,) positions whose logits were kept.
        logits: (R, V) float32, of the full prompt.
        full: greedy tokens of the full prompt, by transformers' own `generate`.
        words: (M,) ids whose embeddings guide the choice: all words of the prompt.
        alpha: strength of that guidance, the family's own.
        relevance: (N,) the largest cosine of each visual token with the words, at least 0.
        picks: (K,) visual tokens in the order that the float64 oracle chooses them.
        pruned_rows: (R2,) positions of the pruned prompt.
        pruned_logits: (R2, V) float32.
        pruned: its greedy tokens.
        seconds: of the whole reference.
    """

    processor: str
    notes: tuple[str, ...]
    samples: tuple[tuple[int, ...], ...]
    eos: tuple[int, ...]
    bos: int | None
    templated: bool
    text: str
    ids: np.ndarray
    placeholder: int
    pixels: np.ndarray
    grid: tuple[int, int, int] | None
    weights: Mapping[str, np.ndarray]
    problems: tuple[str, ...]
    features: np.ndarray
    saliency: np.ndarray | None
    projected: np.ndarray
    embeddings: np.ndarray
    newline: np.ndarray
    positions: np.ndarray
    rows: np.ndarray
    logits: np.ndarray
    full: Continued
    words: np.ndarray
    alpha: float
    relevance: np.ndarray
    picks: np.ndarray
    pruned_rows: np.ndarray
    pruned_logits: np.ndarray
    pruned: Continued
    seconds: float

    @property
    def visual(self) -> np.ndarray:
        """(S,) bool, the places of visual tokens in the prompt."""
        return self.ids == self.placeholder

    @property
    def stays(self) -> np.ndarray:
        """(S,) bool, the places that the pruned prompt keeps."""
        stays = ~self.visual
        stays[np.flatnonzero(self.visual)[self.picks]] = True
        return stays


def sample_places(key: str, size: int) -> np.ndarray:
    """Which entries of a stored tensor (flattened) are compared: the same ones on both sides."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    return np.unique(rng.integers(0, size, SAMPLES))


def spread(count: int) -> np.ndarray:
    """At most `ROWS` of `count` positions, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, ROWS)).round().astype(np.int64))
