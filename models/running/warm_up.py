"""Compiling ahead: blank pictures and prompts that stand for those to come.

A program is compiled when it is first called, so what is warmed up is called once, on blank
pictures of the sizes that are expected; shapes that were met before are not run again.
"""

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from resprune_jax.arguments import whole
from resprune_jax.errors import CallError, shown
from resprune_jax.methods import for_rows, rows_of
from resprune_jax.models.families.base import Picture, Video
from resprune_jax.models.images.files import check_size
from resprune_jax.models.prompts import buckets
from resprune_jax.models.prompts.budgets import listed
from resprune_jax.models.prompts.chat import EncodedPrompt, PromptEncoder
from resprune_jax.models.prompts.options import CallOptions
from resprune_jax.models.running.compiling import Program, compiling
from resprune_jax.models.running.generation import Call
from resprune_jax.models.running.plan import Prompts

if TYPE_CHECKING:
    from resprune_jax.models.api import LVLM

Size = tuple[int, int] | tuple[int, int, int]
"""(height, width) of a picture, or (frames, height, width) of a video, in pixels."""

Sizes = Sequence[Size | Sequence[Size]]
"""For each kind of prompt, the size of its picture, or those of its pictures and videos."""


def blank(size: Size) -> Picture:
    """A black picture, or a video of them, of this size."""
    pixels = np.zeros((*size, 3), np.uint8)
    return pixels if len(size) == 2 else Video(pixels, fps=24.0)


def rows_of_sizes(sizes: Sizes) -> list[list[Size]]:
    """The sizes of each kind of prompt.

    Raises:
        CallError: no size, or something else than whole numbers of at least 1, or too large a one.
    """
    rows: list[list[Any]] = []
    try:
        for entry in sizes:
            single = not isinstance(entry[0], Sequence | np.ndarray)
            row = [entry] if single else list(entry)
            rows.append([tuple(whole("a size", n) for n in size) for size in row])  # type: ignore[union-attr]
    except Exception:  # whatever indexing something else raises
        rows = []
    if not rows or any(len(size) not in (2, 3) for row in rows for size in row):
        raise CallError(
            f"sizes is a list of (height, width), or (frames, height, width) for a video, in "
            f"pixels, got {shown(sizes)}"
        )
    for size in (size for row in rows for size in row):
        check_size(size[-1], size[-2], "a picture of these sizes")
        if len(size) == 3 and size[0] > MOST_FRAMES:
            raise CallError(f"a video of these sizes has {size[0]} frames: {MOST_FRAMES} at most")
    return rows


MOST_FRAMES = 10_000
MOST_ROWS = 4096


def _counts(name: str, values: Any, most: int) -> list[int]:
    """Whole numbers of at least 1.

    Raises:
        CallError: none, something else, or one beyond `most`.
    """
    given = listed(values)
    try:
        found = [whole(name, n) for n in given] if isinstance(given, list | tuple | range) else []
    except CallError:
        found = []
    if not found:
        raise CallError(f"{name} holds whole numbers of at least 1, got {shown(values)}")
    if max(found) > most:
        raise CallError(f"{name} go up to {most} here, got {max(found)}")
    return found


def plain_prompt(encoder: PromptEncoder, media: Sequence[str], tokens: int) -> EncodedPrompt:
    """A prompt of so many tokens beside its placeholders, without a noun."""
    ids = [encoder.placeholders[kind][0] for kind in media] + [0] * tokens
    offsets = np.zeros((len(ids), 2), np.int32)
    return EncodedPrompt("", np.asarray(ids, np.int32), ("",) * len(ids), offsets, 0, "")


@dataclass(frozen=True)
class Step:
    """Where a warm-up stands: a program is about to be compiled, or has just been.

    Attributes:
        program: its name, as the functions in `programs.py` are called.
        number: its place among those to come, from 1.
        total: how many there are.
        seconds: since the warm-up began.
        done: whether it can run now.
        found: whether the persistent cache had it, so that nothing was compiled.
    """

    program: str
    number: int
    total: int
    seconds: float
    done: bool
    found: bool


Announce = Callable[[Step], None]
"""Called before a program is compiled and behind it; never for one that this process has."""


@dataclass(frozen=True)
class _Work:
    """Something to run: pictures to encode, or a call about them, and what it compiles."""

    programs: tuple[tuple[str, Hashable], ...]
    run: Callable[[], object]


def warm_up(
    lvlm: "LVLM",
    sizes: Sizes,
    options: CallOptions,
    *,
    prompt_lengths: Sequence[int],
    batch_sizes: Sequence[int],
    announce: Announce | None = None,
) -> int:
    """Run every combination once; see `LVLM.warm_up`.

    Returns:
        How many different shapes were run.
    """
    context = lvlm.family.config.text.max_position_embeddings
    prompt_lengths = _counts("prompt_lengths", prompt_lengths, context)
    batch_sizes = _counts("batch_sizes", batch_sizes, MOST_ROWS)
    budgets = listed(options.keep)
    keep = options.budgets(len(budgets) if isinstance(budgets, list | tuple) else 1)
    if not keep:
        raise CallError("keep is an empty list: give the budgets to come")
    if not (announce is None or callable(announce)):
        raise CallError(f"announce is a function, got {shown(announce)}")
    options = lvlm.settings.resolve(options)
    assert options.max_new_tokens is not None
    method = lvlm.method_of(options)
    if method is not None and method.stage == "pixels":
        raise CallError(
            f"warm_up runs full pictures, and {type(method).__name__} makes them smaller: warm up"
            " by a call of your own"
        )
    rows = rows_of_sizes(sizes)
    lengths = _representatives(prompt_lengths, buckets.length_bucket)
    batches = _representatives(batch_sizes, buckets.batch_bucket)
    work = list(_plan(lvlm, rows, options, keep, lengths, batches))
    counter = _Counter(work, announce)
    with compiling(counter.tell):
        for each in work:
            counter.come(each)
            each.run()
    return sum(each.programs[0][0] != "encode" for each in work)


def _plan(
    lvlm: "LVLM",
    rows: list[list[Size]],
    options: CallOptions,
    keep: list[Any],
    lengths: list[int],
    batches: list[int],
) -> Iterator[_Work]:
    """What there is to run, laid out on the host before anything is."""
    method = lvlm.method_of(options)
    assert options.max_new_tokens is not None
    entries = 1 if method is None else rows_of(method)
    needs = frozenset() if method is None else frozenset(method.needs)
    done: set[Any] = set()
    encoded: dict[Any, Any] = {}
    for batch in batches:
        for row in rows:
            pictures = lvlm.family.read([[blank(size) for size in row]] * batch, "processor")
            shape = _shapes(pictures.inputs)

            def see(shape: Any = shape, pictures: Any = pictures) -> None:
                encoded[shape] = lvlm.run_tower(pictures, needs).visual

            abstract = lvlm.visual_shapes(pictures, needs)
            if ("encode", shape) not in done:
                done.add(("encode", shape))
                yield _Work((("encode", shape),), see)
            media = tuple(image.media for image in pictures.layouts[0])
            for length in lengths:
                prompt = plain_prompt(lvlm.encoder, media, length)
                prompts = Prompts([prompt] * batch, [[] for _ in range(batch)], "none")
                own = None if method is None else for_rows(method, entries, batch)
                for budget in keep:
                    call = lvlm.lay_out(
                        prompts, abstract, pictures.layouts, [budget] * batch, options,
                        method=own, new_tokens=options.max_new_tokens,
                    )  # fmt: skip
                    programs = _programs_of(call, shape)
                    if programs not in done:
                        done.add(programs)

                        def answer(call: Call = call, shape: Any = shape) -> None:
                            # One step of the loop compiles it as a thousand would.
                            lvlm.run(replace(call, visual=encoded[shape]), last=1)

                        yield _Work(programs, answer)


def _programs_of(call: Call, shape: Hashable) -> tuple[tuple[str, Hashable], ...]:
    """The programs that a call runs behind the vision tower, each with what it is compiled for.

    Args:
        call: laid out.
        shape: of the pictures.
    """
    plan = call.plan
    made: list[tuple[str, Hashable]] = []
    size = len(plan.rows)
    if call.method is not None and not plan.full.all():
        made.append(("prune", (shape, size, plan.picks, plan.noun_ids.shape, plan.limits.shape)))
    made.append(("lay_out", (shape, plan.ids.shape, plan.length, _shapes(plan.rope))))
    prompts: Hashable = (size, plan.length)
    if call.schedule is None:
        made.append(("prefill", prompts))
    else:
        prompts = (prompts, call.schedule.stops)
        made.append(("drop", (prompts, shape)))
    return (*made, ("decode", prompts))


class _Counter:
    """Turns what is compiled into steps.

    Args:
        work: all that will be run.
        announce: hears of the steps.
    """

    def __init__(self, work: Sequence[_Work], announce: Announce | None) -> None:
        every = [program for each in work for program in each.programs]
        self._numbers = {program: n for n, program in enumerate(dict.fromkeys(every), start=1)}
        self._announce = announce
        self._begin = time.perf_counter()
        self._here: dict[str, int] = {}
        self._begun = ""

    def come(self, work: _Work) -> None:
        """This is run next."""
        self._here = {program[0]: self._numbers[program] for program in work.programs}

    def tell(self, program: Program) -> None:
        """See `compiling.Tell`; eager operations beside the programs are not counted."""
        name, told = program.name, program.done or program.name != self._begun
        if self._announce is not None and name in self._here and told and not program.rests:
            self._begun = "" if program.done else name
            spent = time.perf_counter() - self._begin
            number, total = self._here[name], len(self._numbers)
            step = Step(name, number, total, spent, program.done, program.found)
            self._announce(step)


def _representatives(values: Iterable[int], bucket: Any) -> list[int]:
    """The largest value of each bucket, ascending."""
    largest: dict[int, int] = {}
    for value in sorted(values):
        largest[bucket(value)] = value
    return list(largest.values())


def _shapes(tree: Any) -> Any:
    """The shapes of a pytree's arrays, to tell one program from another."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(np.shape(leaf) for leaf in leaves)
