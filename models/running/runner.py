"""The devices' half of an `LVLM`: parameters and compiled functions, on laid-out arrays."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from resprune_jax.choices import Precision
from resprune_jax.errors import CallError
from resprune_jax.methods import Method
from resprune_jax.methods.inputs import ON_REQUEST, OPTIONAL, VisualTokens
from resprune_jax.methods.settings import for_each
from resprune_jax.models.checkpoint.sharding import batch_sharding
from resprune_jax.models.families.base import Family, Pictures
from resprune_jax.models.prompts import buckets
from resprune_jax.models.prompts.generation_file import GenerationSettings
from resprune_jax.models.running.clip import Clip
from resprune_jax.models.running.encoded import Encoded
from resprune_jax.models.running.generation import Call, Chosen, Outcome
from resprune_jax.models.running.precision import resolve_precision
from resprune_jax.models.running.processors import Rules, make_rules
from resprune_jax.models.running.programs import BROKEN, Programs, judged, programs


class Runner:
    """Runs what the host laid out; nothing of a call is kept.

    Attributes:
        family: the model family: its processor, layouts and positions.
        parameters: their arrays alone, as the programs take them.
        eos_ids: (E,) int32, the ids that end an answer.
        settings: what the checkpoint says of its answers.
        dtype: of the parameters.
        precision: what their products are computed in, `None` for 16 bits (`precision.py`).
        mesh: the device mesh, or None.
        clip: the CLIP whose tower this is, for methods that read it, or None.
    """

    def __init__(
        self,
        family: Family,
        state: Any,
        *,
        eos_ids: np.ndarray,
        dtype: DTypeLike,
        settings: GenerationSettings | None = None,
        mesh: jax.sharding.Mesh | None = None,
        clip: Clip | None = None,
        precision: Precision | None = None,
    ) -> None:
        self.family = family
        self.state = state
        self.eos_ids = eos_ids
        self.settings = GenerationSettings() if settings is None else settings
        self.dtype = jnp.dtype(dtype)
        self.precision = resolve_precision(precision, dtype)
        self.mesh = mesh
        self.clip = clip

    @property
    def state(self) -> Any:
        """The parameters, split from the Flax module."""
        return self._state

    @state.setter
    def state(self, state: Any) -> None:
        self._state = state
        self.parameters = tuple(jax.tree.leaves(state))

    @property
    def config(self) -> Any:
        """The architecture."""
        return self.family.config

    @property
    def programs(self) -> Programs:
        """The compiled functions of this architecture."""
        return programs(self.config, self.dtype, self.precision)

    @property
    def words(self) -> dict[int, jax.Array]:
        """The parameters of the embedding table, for programs that read no others."""
        return {place: self.parameters[place] for place in self.programs.words}

    def _read_by(self, method: Method | None) -> Any:
        """What `prune` reads of the parameters: all where a method runs parts of the model."""
        runs = method is not None and ("entering" in method.needs or method.merges == "features")
        return self.parameters if runs else self.words

    def run_tower(self, pictures: Pictures, needs: frozenset[str] = frozenset()) -> Encoded:
        """Run the vision tower and projector on what `Family.read` gave.

        Args:
            pictures: of the rows.
            needs: the optional parts of the visual tokens that a method reads.
        """
        inputs = pictures.inputs
        if self.mesh is not None:
            batched = pictures.batched
            inputs = jax.tree.map(lambda x: self.put(x)[0] if batched else x, inputs)
        # What costs nothing is not named: methods that differ in that share a program.
        parts = needs & ON_REQUEST
        if "clip_patches" not in parts:
            visual = self.programs.encode(self.parameters, inputs, needs=parts)
            return Encoded(visual, pictures.layouts)
        assert self.clip is not None
        visual = self.programs.encode(
            self.parameters, inputs, needs=(parts - {"clip_patches"}) | {"features"}
        )
        made = self.clip.patches(visual)
        features = visual.features if "features" in parts else None
        visual = dataclasses.replace(visual, clip_patches=made, features=features)
        return Encoded(visual, pictures.layouts)

    def visual_shapes(self, pictures: Pictures, needs: frozenset[str]) -> VisualTokens:
        """What `run_tower` would give as shapes alone; nothing is compiled or run.

        Args:
            pictures: of the rows.
            needs: as for `run_tower`; what CLIP makes of the tokens is left out.
        """
        parts = (needs & ON_REQUEST) - {"clip_patches"}
        encode = partial(self.programs.encode, needs=parts)
        shapes: VisualTokens = jax.eval_shape(encode, self.parameters, pictures.inputs)
        return shapes

    def run(
        self,
        call: Call,
        *,
        last: int,
        chosen: Chosen | None = None,
    ) -> Outcome:
        """Select, prefill and decode what is laid out: the devices' part of `generate`.

        Args:
            call: from `lay_out`.
            last: stop after so many tokens, at most the `max_new_tokens` of its options, which are
                resolved.
            chosen: what enters the LLM, where that is known; default what the call's method says.
        """
        *_, made = self.steps(call, last=last, chosen=chosen)
        return made

    def steps(
        self,
        call: Call,
        *,
        last: int,
        step: int | None = None,
        chosen: Chosen | None = None,
    ) -> Iterator[Outcome]:
        """Do what `run` does and stop after every few tokens.

        Args:
            call: as for `run`.
            last: as for `run`.
            step: how many tokens; None for all at once.
            chosen: as for `run`.

        Yields:
            What there is so far, the last one as `run` gives it: the same tokens by the same
            programs, entered anew after each stop.
        """
        marks = [time.perf_counter()]
        chosen = self.choose(call) if chosen is None else chosen
        selection, kept, failed = chosen.selection, chosen.kept, chosen.failed
        jax.block_until_ready((kept, chosen.merged))
        marks.append(time.perf_counter())
        drawn = call.options
        assert drawn.max_new_tokens is not None and drawn.temperature is not None
        slots = buckets.new_token_bucket(drawn.max_new_tokens)
        x, places, count, position = self.assemble(call, chosen)
        left = None
        cache: Any
        if call.schedule is None:
            logits, cache = self.programs.prefill(self.parameters, x, places, count, slots=slots)
        else:
            logits, _, cache, position, dropped = self.drop(
                call, (x, places, count, position), slots=slots
            )
            selection, kept, left = dropped.selection, dropped.kept, np.asarray(dropped.left)
            failed = np.asarray(dropped.failed)
        jax.block_until_ready(logits)
        marks.append(time.perf_counter())
        laps = dict(zip(("select", "prefill"), np.diff(marks).tolist(), strict=True))
        how = (
            # Where nothing is drawn all seeds are alike, and share a program.
            _seeds(drawn.rng_seed if drawn.temperature else 0, len(logits)),
            np.float32(max(drawn.temperature, 1e-6)),
            np.float32(drawn.top_p),
            np.int32(drawn.top_k) if drawn.top_k and drawn.temperature else None,
            np.float32(drawn.min_p) if drawn.min_p and drawn.temperature else None,
            self.rules(call),
        )
        begun: tuple[jax.Array, np.int32] | None = None
        end, spent = 0, 0.0
        while end < last:
            start = time.perf_counter()
            end = last if step is None else min(end + step, last)
            buffer, cache = self.programs.decode(
                self.parameters, cache, None if begun else logits, position, np.int32(end),
                self.eos_ids, *how, begun, slots=slots, greedy=drawn.temperature == 0,
            )  # fmt: skip
            begun = buffer, np.int32(end)
            tokens = np.asarray(buffer)
            spent += time.perf_counter() - start
            # Behind its end, or behind what broke it, a row holds nothing.
            ended = (tokens[:, end - 1] < 0) | np.isin(tokens[:, end - 1], self.eos_ids)
            finite = (tokens != BROKEN).all(axis=1)
            timings = {**laps, "decode": spent}
            if ended.all():
                end = last
            yield Outcome(selection, kept, failed, finite, tokens, timings, ended, left)

    def rules(self, call: Call) -> Rules | None:
        """What the settings do to the scores of this call; None for nothing."""
        ids, valid = call.plan.ids, call.plan.valid
        made = make_rules(
            self.settings, call.options, [row[own] for row, own in zip(ids, valid, strict=True)],
            ends=self.eos_ids.tolist(), vocabulary=self.config.text.vocab_size,
            length=ids.shape[1],
        )  # fmt: skip
        if made is None or self.mesh is None:
            return made
        of_rows = {"least": made.least, "past": made.past}
        return dataclasses.replace(made, **jax.tree.map(lambda x: self.put(x)[0], of_rows))

    def choose(self, call: Call) -> Chosen:
        """Which visual tokens enter the LLM."""
        plan, visual = call.plan, call.visual
        most = visual.valid.shape[1]
        if call.method is None or plan.full.all():
            # An array of the devices, as a selection gives: one program for both.
            everything = np.arange(most) < plan.totals[:, None]
            return Chosen(jax.device_put(self.put(everything)[0]))
        per_image = plan.limits.ndim == 2
        full = plan.full[:, None] if per_image else plan.full
        # A row that keeps everything needs no picks: it must not stretch the loop of the others.
        limits = np.where(full, np.minimum(plan.limits, 1), plan.limits).astype(np.int32)
        if not per_image:
            limits = np.maximum(limits, 1)  # of the row that a prompt without images borrows
        tolerance = call.options.tolerance
        stop = np.float32(-1 if tolerance is None else tolerance)
        owner = self.put(plan.owner(most))[0] if per_image else None
        asked = (
            self._read_by(call.method), visual,
            *self.put(plan.rows, plan.noun_ids, plan.noun_valid, plan.full, limits), stop,
            for_each(call.method, len(plan.rows)), owner, self._clip_texts(call),
        )  # fmt: skip
        prune = partial(self.programs.prune, *asked, keep=plan.picks, newline=call.options.newline)
        selection, kept, verdict, merged = prune()
        broken, doubtful = judged(np.asarray(verdict))
        if doubtful:
            selection, kept, verdict, merged = prune(guarded=True)
            broken, _ = judged(np.asarray(verdict))
        _refuse_broken(broken, call)
        return Chosen(kept, selection, merged)

    def drop(self, call: Call, assembled: Any, *, slots: int = 0, every: bool = False) -> Any:
        """Prefill with drops on the way; see `Programs.drop`.

        Args:
            call: with a schedule.
            assembled: from `assemble`, with every visual token.
            slots: for an answer.
            every: give the logits of every token that is left.
        """
        plan, own = call.plan, call.schedule
        assert own is not None and call.method is not None
        unread: dict[str, Any] = {part: None for part in OPTIONAL if part not in call.method.needs}
        visual: VisualTokens = dataclasses.replace(call.visual, **unread)
        owner = plan.owner(visual.valid.shape[1])
        made = self.programs.drop(
            self.parameters, *assembled, *self.put(own.number), visual,
            *self.put(plan.rows, owner, own.full), own.limits, own.method,
            stops=own.stops, room=own.room, slots=slots, every=every,
        )  # fmt: skip
        _refuse_broken(bool(np.asarray(made[-1].broken)), call)
        return made

    def relevance(self, call: Call) -> jax.Array | None:
        """The text relevance of each row's visual tokens (B, N); None where nothing reads it."""
        plan, method = call.plan, call.method
        if method is None or not method.needs & {"text", "clip_text"}:
            return None
        if not hasattr(method, "relevance"):
            return None
        return self.programs.weigh(
            self.words, call.visual,
            *self.put(plan.rows, plan.noun_ids, plan.noun_valid),
            for_each(method, len(plan.rows)), self._clip_texts(call),
        )  # fmt: skip

    def _clip_texts(self, call: Call) -> tuple[jax.Array, jax.Array] | None:
        """CLIP's embeddings of the texts that the method reads, and which there are."""
        if call.clip is None:
            return None
        assert self.clip is not None
        return self.clip.texts(call.clip)

    def assemble(self, call: Call, chosen: Chosen) -> Any:
        """The pruned prompts as the decoder takes them."""
        plan = call.plan
        rows, embeddings = plan.rows, call.visual.embeddings
        if chosen.merged is not None:  # these are of the prompts already, not of the images
            rows, embeddings = np.arange(len(rows), dtype=rows.dtype), chosen.merged
        rope = jax.tree.map(lambda x: self.put(x)[0], plan.rope)
        return self.programs.assemble(
            self.words, *self.put(plan.ids, plan.visual_index, plan.valid, rows), embeddings,
            chosen.kept, rope, length=plan.length, positions=call.positions,
        )  # fmt: skip

    def put(self, *arrays: np.ndarray) -> list[Any]:
        """Host arrays as the compiled functions take them: over the data axis if there is one."""
        if self.mesh is None:
            return list(arrays)
        return [jax.device_put(x, batch_sharding(self.mesh, x.shape)) for x in arrays]


def _refuse_broken(broken: bool, call: Call) -> None:
    if broken:
        raise CallError(
            f"the keep list of {type(call.method).__name__} is broken: more tokens than its limit,"
            " one twice, or one of padding; see `Method.order`"
        )


def _seeds(rng_seed: int | Sequence[int], batch: int) -> np.ndarray:
    """The seed of a batch, () uint32, or those of its rows, (B,), filled up to the bucket."""
    seeds = np.asarray(rng_seed, np.uint32)
    return np.resize(seeds, batch) if seeds.ndim else seeds
