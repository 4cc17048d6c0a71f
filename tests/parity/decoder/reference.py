"""A torch decoder run layer by layer with drops: what decoder-stage methods are compared with.

Needs torch. The weights, norms, projections, MLPs and rotary tables are the modules of the
installed transformers; attention and the cache are written out here, so that every layer may work
on its own tokens. One prompt at a time, float32, no padding.

    trace = prefill(model, embeddings, visual, drops)  # embeddings (S, d), visual: their places
    tokens, logits = decode(model, trace, 16)  # greedy, changes trace's cache
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Choice:
    """What a method decides at a drop.

    Attributes:
        kept: places among the current visual rows that stay.
        merged: (C, d) new rows, which follow the kept ones, or None.
    """

    kept: Sequence[int]
    merged: np.ndarray | None = None


@dataclass(frozen=True)
class Drop:
    """A drop between layers `before` - 1 and `before`; what leaves layer l's output has l + 1.

    Attributes:
        before: the first layer that works on what is left (the number of layers that have run).
        choose: decides from what can be seen there.
        renumber: position ids become 0, 1, ... from there on; else the original ones are kept.
    """

    before: int
    choose: Callable[["View"], Choice]
    renumber: bool = False


@dataclass
class Rows:
    """The sequence between two layers.

    Attributes:
        hidden: (S, d).
        positions: (S,) position ids, or (S, 3) on M-RoPE's axes.
        places: place of each row in the prompt as given, -1 for a merged row.
        visual: which rows are visual, merged ones included.
    """

    hidden: torch.Tensor
    positions: torch.Tensor
    places: list[int]
    visual: list[int]


@dataclass
class Cached:
    """Keys with RoPE and values of a layer, (G, S, h), and the position ids of their rows, which
    stand in the order of the prompt."""

    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor


@dataclass
class Trace:
    """What a prefill left.

    Attributes:
        logits: (S', V) of all rows that went through the last layer; the last row predicts.
        places: the place of each of these rows in the prompt, -1 for a merged row.
        kept: for each drop the visual tokens left by number (0 .. N-1), -1 for a merged row.
        cache: keys, values and positions of every layer.
        views: what each drop saw.
    """

    logits: np.ndarray
    places: list[int]
    kept: list[list[int]]
    cache: list[Cached]
    views: list["View"] = field(default_factory=list)

    @property
    def lengths(self) -> list[int]:
        """Rows in the cache of every layer."""
        return [len(layer.positions) for layer in self.cache]


def parts(model: Any) -> tuple[Any, Any]:
    """(language model, head) of a LlamaForCausalLM, a LLaVA or a Qwen2.5-VL model."""
    inner = model.model
    return getattr(inner, "language_model", inner), model.lm_head


def array(tensor: torch.Tensor) -> np.ndarray:
    """float64 on the host."""
    return tensor.detach().to(torch.float64).numpy()


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE on (heads, S, h): the two halves of a head make the pairs."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


def rotary(
    language: Any, hidden: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (S, h) of position ids (S,) or (S, 3), by the model's own module."""
    ids = positions[None] if positions.ndim == 1 else positions.T[:, None]  # (1, S) or (3, 1, S)
    cos, sin = language.rotary_emb(hidden[None], ids)
    return cos[0], sin[0]


def project(
    language: Any, layer: int, hidden: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries (H, S, h) and keys (G, S, h) with RoPE and values of a layer's normed input."""
    block = language.layers[layer]
    attention, normed = block.self_attn, block.input_layernorm(hidden)
    cos, sin = rotary(language, hidden, positions)

    def heads(rows: torch.Tensor) -> torch.Tensor:
        return rows.unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)

    queries, keys = heads(attention.q_proj(normed)), heads(attention.k_proj(normed))
    return turn(queries, cos, sin), turn(keys, cos, sin), heads(attention.v_proj(normed))


def attend(
    language: Any, layer: int, queries: torch.Tensor, cached: Cached
) -> tuple[torch.Tensor, torch.Tensor]:
    """(what attention adds to the rows (S, d), its probabilities (H, S, T)).

    The queries are of the last S rows of the layer; a row sees itself and those in front of it.
    """
    attention = language.layers[layer].self_attn
    group = queries.shape[0] // cached.keys.shape[0]
    size, total = queries.shape[1], cached.keys.shape[1]
    behind = torch.ones(size, total, dtype=torch.bool).triu(total - size + 1)
    keys, values = (x.repeat_interleave(group, dim=0) for x in (cached.keys, cached.values))
    scores = queries @ keys.transpose(1, 2) * attention.head_dim**-0.5
    scores = scores.masked_fill(behind, -torch.inf)
    probabilities = torch.softmax(scores, dim=-1)
    return attention.o_proj((probabilities @ values).transpose(0, 1).flatten(1)), probabilities


def run_layer(
    language: Any, layer: int, rows: Rows, cached: Cached | None = None
) -> tuple[torch.Tensor, torch.Tensor, Cached]:
    """(states after the layer, attention probabilities, the layer's cache with these rows)."""
    block = language.layers[layer]
    queries, keys, values = project(language, layer, rows.hidden, rows.positions)
    cached = (
        Cached(keys, values, rows.positions)
        if cached is None
        else Cached(
            torch.cat([cached.keys, keys], dim=1),
            torch.cat([cached.values, values], dim=1),
            torch.cat([cached.positions, rows.positions]),
        )
    )
    added, probabilities = attend(language, layer, queries, cached)
    hidden = rows.hidden + added
    hidden = hidden + block.mlp(block.post_attention_layernorm(hidden))
    return hidden, probabilities, cached


@dataclass(frozen=True)
class View:
    """What a method may look at between two layers; arrays are float64.

    Attributes:
        before: the layer that comes next, K.
        rows: the sequence there, before the drop.
        embeddings: (S, d) of the whole prompt as it entered layer 0.
        first: the places of the N visual tokens in the prompt.
    """

    language: Any
    before: int
    rows: Rows
    embeddings: torch.Tensor
    first: Sequence[int]
    probabilities: torch.Tensor | None
    cached: Cached | None

    @property
    def visual(self) -> list[int]:
        """Rows that are visual, merged ones included."""
        return self.rows.visual

    @property
    def text_after(self) -> list[int]:
        """Rows of every text token behind the prompt's last visual token, dropped ones included."""
        words = len(self.embeddings) - 1 - max(self.first)
        return list(range(len(self.rows.places) - words, len(self.rows.places)))

    @property
    def positions(self) -> list[int]:
        """Position ids of the rows."""
        return self.rows.positions.tolist()

    def attention(self) -> np.ndarray:
        """(H, S, S) of layer K - 1 after the softmax; [:, -1] is the last prompt token's."""
        if self.probabilities is None:
            raise ValueError("no layer has run on these rows, so there is no attention")
        return array(self.probabilities)

    def keys(self) -> np.ndarray:
        """(G, S, h) of layer K - 1 with RoPE."""
        if self.cached is None:
            raise ValueError("no layer has run on these rows, so there are no keys")
        return array(self.cached.keys)

    def hidden(self) -> np.ndarray:
        """(S, d) output of layer K - 1."""
        return array(self.rows.hidden)

    def final_norm(self) -> np.ndarray:
        """The same after the decoder's last norm."""
        return array(self.language.norm(self.rows.hidden))

    def next_query(self) -> np.ndarray:
        """(H, h) of layer K for the last prompt token, with RoPE at its present position."""
        return array(project(self.language, self.before, *self._inputs())[0][:, -1])

    def next_keys(self) -> np.ndarray:
        """(G, S, h) of layer K with RoPE at the present positions."""
        return array(project(self.language, self.before, *self._inputs())[1])

    def bare_keys(self) -> np.ndarray:
        """(S, G h) key projection of layer K of the states as they are: no norm, no RoPE."""
        return array(self.language.layers[self.before].self_attn.k_proj(self.rows.hidden))

    def _inputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.rows.hidden, self.rows.positions


def dropped(rows: Rows, choice: Choice, renumber: bool) -> Rows:
    """The rows that are left: text in front, kept visual rows, merged ones, text behind."""
    kept = [rows.visual[i] for i in choice.kept]
    if len(set(kept)) < len(kept) or kept != sorted(kept):
        raise ValueError(f"kept rows must ascend, got {list(choice.kept)}")
    first, last = min(rows.visual), max(rows.visual)
    front = [i for i in range(first) if i not in rows.visual]
    between = [i for i in range(first, last + 1) if i not in rows.visual]
    body = sorted(kept + between)
    behind = list(range(last + 1, len(rows.places)))
    pieces = [rows.hidden[front + body]]
    places = [rows.places[i] for i in front + body]
    added = 0
    if choice.merged is not None and len(choice.merged):
        if not renumber:
            raise ValueError("merged rows have no position of their own: renumber")
        pieces.append(torch.tensor(choice.merged, dtype=rows.hidden.dtype))
        added = len(choice.merged)
        places += [-1] * added
    pieces.append(rows.hidden[behind])
    places += [rows.places[i] for i in behind]
    visual = [len(front) + i for i, row in enumerate(body) if row in kept]
    visual += [len(front) + len(body) + i for i in range(added)]
    positions = torch.arange(len(places)) if renumber else rows.positions[front + body + behind]
    return Rows(torch.cat(pieces), positions, places, visual)


@torch.no_grad()
def prefill(
    model: Any,
    embeddings: torch.Tensor | np.ndarray,
    visual: Sequence[int],
    drops: Sequence[Drop] = (),
    positions: np.ndarray | None = None,
) -> Trace:
    """Run a prompt, dropping where `drops` say.

    Args:
        model: see `parts`; in float32.
        embeddings: (S, d), visual tokens in their places.
        visual: the places of the visual tokens, ascending.
        drops: by falling no `before`; of several before one layer the later ones see what the
            earlier ones left, and no attention or keys of the layer behind.
        positions: (S,) or (S, 3); 0, 1, ... if not given.
    """
    language, head = parts(model)
    if getattr(language.config, "sliding_window", None):
        raise ValueError("a decoder with a sliding window is not supported")
    embeddings = torch.as_tensor(embeddings).detach().float()
    numbers = {place: number for number, place in enumerate(visual)}
    places = np.arange(len(embeddings)) if positions is None else positions
    ids = torch.from_numpy(np.ascontiguousarray(places)).long()
    rows = Rows(embeddings, ids, [*range(len(embeddings))], [*visual])
    cache: list[Cached] = []
    trace = Trace(np.zeros(0), [], [], cache)
    probabilities = None
    last: Cached | None = None
    for layer in range(len(language.layers) + 1):
        for drop in (each for each in drops if each.before == layer):
            view = View(language, layer, rows, embeddings, visual, probabilities, last)
            rows = dropped(rows, drop.choose(view), drop.renumber)
            trace.views.append(view)
            trace.kept.append([numbers.get(rows.places[i], -1) for i in rows.visual])
            probabilities = last = None
        if layer < len(language.layers):
            hidden, probabilities, last = run_layer(language, layer, rows)
            rows = Rows(hidden, rows.positions, rows.places, rows.visual)
            cache.append(last)
    trace.logits, trace.places = array(head(language.norm(rows.hidden))), rows.places
    return trace


@torch.no_grad()
def decode(
    model: Any, trace: Trace, count: int, stop: int | None = None
) -> tuple[list[int], np.ndarray]:
    """Greedy decoding behind a prefill; each layer goes on from its own last position id.

    The last row of a prompt is text, which stands behind all others, on every axis alike.

    Args:
        trace: whose cache grows.
        count: new tokens.
        stop: the id after which nothing follows.

    Returns:
        The ids, and the logits that each was taken from, (count, V).
    """
    language, head = parts(model)
    tokens, seen = [], []
    logits = trace.logits[-1]
    for step in range(count):
        tokens.append(int(np.argmax(logits)))
        seen.append(logits)
        if tokens[-1] == stop or step == count - 1:
            break
        hidden = language.embed_tokens(torch.tensor([tokens[-1]]))
        for layer, cached in enumerate(trace.cache):
            rows = Rows(hidden, cached.positions[-1:] + 1, [-1], [])
            hidden, _, trace.cache[layer] = run_layer(language, layer, rows, cached)
        logits = array(head(language.norm(hidden)))[0]
    return tokens, np.stack(seen)


def margins(logits: np.ndarray) -> np.ndarray:
    """By how much the best token leads the second, (count,): near 0 a greedy choice is a toss."""
    ranked = np.sort(logits, axis=-1)
    return ranked[..., -1] - ranked[..., -2]


def llava_embeddings(model: Any, **inputs: Any) -> torch.Tensor:
    """(S, d) that the language model of a LLaVA model gets for one prompt, picture in place."""
    caught: list[torch.Tensor] = []

    def catch(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        caught.append(kwargs["inputs_embeds"].detach())

    language, _ = parts(model)
    handle = language.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        handle.remove()
    return caught[0][0]
