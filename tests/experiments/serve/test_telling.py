"""What a stream is told on the way is the beginning of what the whole answer says."""

from copy import copy
from functools import cache
from types import SimpleNamespace
from typing import Any
from weakref import ref

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from resprune_jax.errors import CallError
from resprune_jax.experiments.serve.batches.answering import Answerer
from resprune_jax.experiments.serve.batches.worker import End, Job
from resprune_jax.experiments.serve.pictures.cache import ImageCache
from resprune_jax.experiments.serve.telling.metrics import Metrics

# Llama's kind: what the vocabulary lacks is spelt in bytes, and a run of those that is no text as a
# whole is told as that many replacement characters.
BYTES = sorted({f"<0x{byte:02X}>" for byte in "é😀😅".encode()} | {"<0xFF>"})
VOCABULARY = {piece: place for place, piece in enumerate(["</s>", "a", "b", "▁", *BYTES])}
IDS = {piece: place for piece, place in VOCABULARY.items() if piece != "</s>"}


@cache
def answerer() -> Answerer:
    """One whose model has this vocabulary, and nothing else."""
    made = Tokenizer(models.BPE(VOCABULARY, [], byte_fallback=True))
    made.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
    ])  # fmt: skip

    def decode(ids: Any) -> str:
        return str(made.decode([int(i) for i in ids if i > 0])).strip()

    tokenizer = SimpleNamespace(get_vocab=lambda: VOCABULARY, clean_up_tokenization_spaces=False)
    encoder = SimpleNamespace(tokenizer=tokenizer, decode=decode)
    lvlm: Any = SimpleNamespace(encoder=encoder, eos_ids=np.asarray([0]))
    return Answerer(lvlm, ImageCache(0), Metrics(), step=1)


def told(ids: list[int], step: int, stops: tuple[str, ...], stream: bool) -> tuple[str, Any]:
    """The parts that a request is told, put together, and its end."""
    heard: list[Any] = []
    options = SimpleNamespace(max_new_tokens=len(ids), method="none", keep=None, temperature=0)
    asked = SimpleNamespace(stream=stream, stop=stops)
    work = SimpleNamespace(options=options, asked=asked, sent="", words=3)
    job, own = Job("key", heard.append, work), answerer()
    phases = dict.fromkeys(("encode", "select", "prefill", "decode", "compile"), 0.0)
    for count in [*range(step, len(ids), step), len(ids)]:
        some = np.asarray(ids[:count], np.int32)
        made: Any = SimpleNamespace(
            errors=[None], tokens=[some], texts=[own.lvlm.encoder.decode(some)],
            done=[count == len(ids)], timings=phases, costs=[None], visual_tokens=[0], kept=[0],
            nouns=[[]], noun_backend="none",
        )  # fmt: skip
        if not job.over:
            own._tell(job, made, 0, {}, {"queue": 0.0, "encode": 0.0, "compile": 0.0})
    end = heard.pop()
    assert isinstance(end, End) and end.error is None, end
    return "".join(part.text for part in heard), end.made


def spelt(text: str) -> list[int]:
    """A text in this vocabulary."""
    return [
        place
        for char in text
        for place in (
            [IDS[char]]
            if char in IDS
            else [IDS["▁"]]
            if char == " "
            else [IDS[f"<0x{byte:02X}>"] for byte in char.encode()]
        )
    ]


def test_an_answer_that_ends_inside_of_a_character() -> None:
    ids = spelt("a😀😅")[:-1]
    for step in range(1, 9):
        parts, end = told(ids, step, (), stream=True)
        assert parts == end.text == told(ids, step, (), stream=False)[1].text
        assert end.finish == "length"
    parts, end = told(spelt("a😀 b"), 5, (), stream=True)
    assert parts == end.text == "a😀 b"


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.one_of(st.sampled_from(sorted(IDS.values())).map(lambda i: [i]),
                       st.sampled_from(["é", "😀", "a b"]).map(spelt)), min_size=1, max_size=6),
    st.integers(1, 8),
    st.lists(st.sampled_from(["ab", "b ", "é", "😀", "\ufffd"]), max_size=2).map(tuple),
)  # fmt: skip
def test_streams_say_what_whole_answers_say(
    pieces: list[list[int]], step: int, stops: tuple[str, ...]
) -> None:
    ids = [place for piece in pieces for place in piece]
    parts, end = told(ids, step, stops, stream=True)
    whole = told(ids, step, stops, stream=False)[1]
    assert parts == end.text == whole.text
    assert (end.finish, end.tokens) == (whole.finish, whole.tokens)
    # And where the stops of the loop lie changes nothing.
    assert told(ids, len(ids), stops, stream=False)[1].text == whole.text


def test_what_a_failed_batch_held_is_free_when_its_jobs_are_asked_alone() -> None:
    """A batch that was too large for the device's memory must not stay there meanwhile."""
    held: list[Any] = []
    found: list[bool] = []
    told: list[Any] = []

    class Arrays:
        """What a batch holds on the device."""

    def stream(images: Any, questions: list[Any], **_: Any) -> Any:
        if len(questions) == 1:
            found.append(held[0]() is None)
            raise CallError("one alone")
        own = Arrays()
        held.append(ref(own))
        yield from ()
        raise RuntimeError("out of memory")

    own = copy(answerer())
    own.lvlm = SimpleNamespace(stream=stream)  # type: ignore[assignment]
    own._shared = lambda works: None  # type: ignore[assignment,method-assign,return-value]
    work = [SimpleNamespace(row=None, picture_key=None, question=at, sent="") for at in range(3)]
    own([Job("key", told.append, each) for each in work])
    assert found == [True] * 3
    assert [end.error.status for end in told] == [400] * 3
