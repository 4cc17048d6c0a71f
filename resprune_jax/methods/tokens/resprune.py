"""ResPrune: greedy residual-energy selection, gated by relevance to the question's nouns."""

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np

from resprune_jax.arguments import LARGEST, array_of, is_torch
from resprune_jax.engines import AS_GIVEN, FROM_TOKENS, resolve
from resprune_jax.engines.product import joint_product
from resprune_jax.errors import CallError, one_of, shown
from resprune_jax.methods.base import Method
from resprune_jax.methods.inputs import PATCH, PromptContext, VisualTokens
from resprune_jax.prepared import Prepared
from resprune_jax.relevance import Aggregate, NonNegative, of_cosines, relevance
from resprune_jax.seeds import SeedRule, seed_token
from resprune_jax.selection import MAX_BYTES, Selection, select

_NO_NUMBERS = (bool, str, bytes, bytearray, memoryview, complex, dict, set, frozenset)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ResPrune(Method):
    """The paper's method (arXiv 2603.21105), before the LLM.

    Attributes:
        alpha: strength of textual guidance, one for all rows or (B,) for each, a leaf that a sweep
            can vmap over; 0.75 is the best row of Table V for the LLaVA family, 0 the
            text-agnostic variant.
        aggregate: relevance over the noun tokens (Table VI).
        nonnegative: how negative cosines become weights (our reading, `relevance.py`).
        seed_rule: the first pick (Table VII).
        relevance_sign: 1 is the paper's; -1 counts likeness to the nouns *against* a token, as
            SPARE (arXiv 2606.18681) claims to be better.
        engine: how the loop runs; the picks do not depend on it.

    Raises:
        CallError: a name that is not among the choices, or an alpha that is no number, below 0 or
            not finite.
    """

    alpha: float | jax.Array | np.ndarray = field(default=0.75, metadata={"per_row": True})
    aggregate: Aggregate = field(default="max", metadata={"static": True})
    nonnegative: NonNegative = field(default="clip", metadata={"static": True})
    seed_rule: SeedRule = field(default="cls_attention", metadata={"static": True})
    relevance_sign: int = field(default=1, metadata={"static": True})
    engine: str = field(default="auto", metadata={"static": True})

    def __post_init__(self) -> None:
        """Refuse what cannot work when it is written down, not when it is traced."""
        one_of("aggregate", self.aggregate, get_args(Aggregate))
        one_of("nonnegative", self.nonnegative, get_args(NonNegative))
        one_of("seed rule", self.seed_rule, get_args(SeedRule))
        if self.relevance_sign not in (1, -1):
            raise CallError(f"relevance_sign is 1 or -1, got {shown(self.relevance_sign)}")
        resolve(self.engine)
        # JAX makes instances whose leaf is a tracer, a shape or a mark of its own: let them pass.
        alpha = self.alpha
        if isinstance(alpha, list | tuple | np.ndarray) or is_torch(alpha):
            alpha = array_of("alpha", alpha, "number")
            object.__setattr__(self, "alpha", alpha)
            if alpha.size == 0:
                raise CallError("alpha is empty: give a number, or one for each row")
            if alpha.ndim > 1:
                raise CallError(f"alpha is a number, or one for each row, got shape {alpha.shape}")
        if isinstance(alpha, np.generic):
            array_of("alpha", alpha, "number")
        if alpha is None or isinstance(alpha, _NO_NUMBERS):
            raise CallError(f"alpha must be a number, or one for each row, got {shown(alpha)}")
        if isinstance(alpha, int | float | np.ndarray | np.generic):
            known = alpha if isinstance(alpha, int) else np.asarray(alpha, np.float64)
            wrong = ~(np.asarray(known >= 0) & np.asarray(known <= LARGEST))  # NaN is neither
            if wrong.any():
                first = np.ravel(alpha)[wrong.ravel()][0]
                raise CallError(f"alpha must be finite and non-negative, got {shown(first)}")

    measures_energy = True
    source = "arXiv 2603.21105"
    instead = MappingProxyType({"saliency": "choose another seed_rule, max_norm for example"})

    @property
    def needs(self) -> frozenset[str]:
        """The question's nouns unless `alpha` is 0, and what the seed rule reads."""
        unguided = isinstance(self.alpha, int | float) and self.alpha == 0
        extra = {"cls_attention": {"saliency"}, "center": {"coords"}, "text": {"text"}}
        return frozenset((set() if unguided else {"text"}) | extra.get(self.seed_rule, set()))

    def relevance(self, visual: VisualTokens, prompt: PromptContext) -> jax.Array:
        """How relevant each visual token is to the question, (B, N) float32, before the gate."""
        return relevance(
            visual.embeddings,
            prompt.text,
            text_valid=prompt.text_valid,
            valid=visual.valid,
            aggregate=self.aggregate,
            nonnegative=self.nonnegative,
            sign=self.relevance_sign,
        )

    def select(
        self,
        visual: VisualTokens,
        prompt: PromptContext,
        keep: int,
        *,
        limit: jax.Array | None = None,
        tolerance: jax.Array | None = None,
    ) -> Selection:
        """Choose tokens for a batch; arguments as `Method.select`, which see."""
        tokens: jax.Array | Prepared = visual.embeddings
        if self._in_one_product(visual, prompt, keep):
            tokens, weight = self._joined(visual, prompt)
        else:
            weight = self.relevance(visual, prompt)  # [B, N]
        first = seed_token(
            self.seed_rule,
            visual.embeddings,
            visual.valid,
            relevance=weight,
            saliency=visual.saliency,
            coords=visual.coords,
            candidates=None if visual.kind is None else visual.kind == PATCH,
        )  # [B]
        return select(
            tokens,
            keep,
            limit=limit,
            relevance=weight,
            alpha=self.alpha,
            first=first,
            valid=None if isinstance(tokens, Prepared) else visual.valid,
            tolerance=tolerance,
            engine=self.engine,
        )

    def _in_one_product(self, visual: VisualTokens, prompt: PromptContext, keep: int) -> bool:
        """Whether relevance and Gram matrix come out of one product: on a GPU, which gains by each
        launch that is left out, where the engine wants the matrix and memory holds the batch's."""
        if jax.default_backend() != "gpu" or self.aggregate == "pooled":
            return False
        size, n, d = visual.embeddings.shape
        rows = n + prompt.text.shape[1]
        engine = resolve(self.engine, n, min(keep, n), d, max_bytes=MAX_BYTES)
        return engine not in FROM_TOKENS | AS_GIVEN and 8 * size * rows * (rows + d) <= MAX_BYTES

    def _joined(self, visual: VisualTokens, prompt: PromptContext) -> tuple[Prepared, jax.Array]:
        """What `prepare` and `relevance` give, by one product."""
        text = jnp.where(prompt.text_valid[..., None], prompt.text, 0)
        made, cosines = joint_product(visual.embeddings, visual.valid, text)
        weight = of_cosines(
            cosines, prompt.text_valid, visual.valid, self.aggregate, self.nonnegative,
            self.relevance_sign,
        )  # fmt: skip
        return Prepared(visual.embeddings, visual.valid, *made), weight
