"""From nouns to LLM token ids: noun_token_ids under both tokenizer families."""

import itertools
import json
import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resprune_jax.errors import CallError
from resprune_jax.prompts import (
    noun_token_ids,
)
from tests.prompt_data import ROWS, SHORT, lexicon

ACCENTED = [
    f"Is the {cafe} near the {pina} in São Paulo?\n{SHORT}"
    for form in ("NFC", "NFD")
    for cafe, pina in [(unicodedata.normalize(form, "café"), unicodedata.normalize(form, "piña"))]
]
CHINESE = "这张图片里有什么？请直接回答问题。"
KINDS = ["llama-legacy", "llama", "llama-file", "qwen2"]


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, Any]:
    """Real tokenizer pipelines of both families, their merges learnt from the labelled prompts."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
    from tokenizers.models import BPE
    from transformers import (
        AddedToken,
        LlamaTokenizer,
        PreTrainedTokenizerFast,
        Qwen2Tokenizer,
    )

    corpus = [template(row["prompt"])[0] for row in ROWS]
    image = AddedToken("<image>", special=True, normalized=False)
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    learner = Tokenizer(BPE(byte_fallback=True))
    # SentencePiece merges never cross a space; the tokenizers' own retraining would.
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    learner.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=800, special_tokens=specials, show_progress=False)
    )
    model = json.loads(learner.to_str())["model"]
    vocab, merges = model["vocab"], [tuple(pair) for pair in model["merges"]]
    made: dict[str, Any] = {
        "llama-legacy": LlamaTokenizer(vocab=vocab, merges=merges, legacy=True, add_bos_token=True),
        "llama": LlamaTokenizer(vocab=vocab, merges=merges, legacy=False, add_bos_token=True),
    }
    # The form of the tokenizer.json files on the Hub: the marker is set by a normalizer.
    file = Tokenizer(BPE(vocab, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    file.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    file.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    file.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    made["llama-file"] = PreTrainedTokenizerFast(
        tokenizer_object=file, bos_token="<s>", unk_token="<unk>"
    )
    made["qwen2"] = Qwen2Tokenizer().train_new_from_iterator(
        [corpus], vocab_size=800, show_progress=False
    )
    for tokenizer in made.values():
        tokenizer.add_tokens([image])
        assert tokenizer.is_fast
    return made


def template(question: str, system: str = "") -> tuple[str, int]:
    """LLaVA-1.5's prompt and where the question begins in it."""
    before = f"{system}USER: <image>\n"
    return f"{before}{question} ASSISTANT:", len(before)


def encode(
    tokenizer: Any, text: str, *, bos: bool = True
) -> tuple[list[Any], list[int], list[str]]:
    coded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=bos)
    pieces = tokenizer.convert_ids_to_tokens(coded["input_ids"])
    return coded["offset_mapping"], coded["input_ids"], pieces


@pytest.mark.parametrize("kind", KINDS)
def test_every_noun_maps_to_its_tokens(tokenizers: dict[str, Any], kind: str) -> None:
    tokenizer = tokenizers[kind]
    checked = 0
    for prompt in [row["prompt"] for row in ROWS] + ACCENTED + [CHINESE]:
        text, shift = template(prompt)
        for bos in (True, False):
            offsets, ids, pieces = encode(tokenizer, text, bos=bos)
            assert (ids[0] == tokenizer.bos_token_id) == (bos and kind != "qwen2")
            for noun in lexicon().extract(prompt):
                span = noun.span(shift)
                assert text[slice(*span)] == noun.text
                got = noun_token_ids([span], offsets, ids, text)
                assert got.dtype == np.int32
                assert np.array_equal(
                    got, noun_token_ids([span], offsets, ids, text, pieces=pieces)
                )
                # The oracle looks at what the tokens say, not at offsets: the shortest run of
                # tokens around the noun that decodes to it spells it with exactly these ids.
                first = next(i for i, (a, b) in enumerate(offsets) if b > max(a, span[0]))
                last = first
                want = unicodedata.normalize("NFC", noun.text)
                while want not in unicodedata.normalize(
                    "NFC", tokenizer.decode(ids[first : last + 1])
                ):
                    last += 1
                    assert last < len(ids), (noun, pieces)
                run = [i for i in range(first, last + 1) if pieces[i].strip("▁Ġ \n")]
                assert list(got) == list(dict.fromkeys(ids[i] for i in run)), (noun, pieces)
                checked += 1
    print(f"{kind}: {checked} noun spans spelled by their tokens")
    assert checked >= 230


@pytest.mark.parametrize("kind", KINDS)
def test_all_nouns_together_and_in_order(tokenizers: dict[str, Any], kind: str) -> None:
    for row in ROWS:
        text, shift = template(row["prompt"])
        offsets, ids, _ = encode(tokenizers[kind], text)
        spans = [noun.span(shift) for noun in lexicon().extract(row["prompt"])]
        one_by_one = [noun_token_ids([span], offsets, ids, text).tolist() for span in spans]
        together = noun_token_ids(spans, offsets, ids, text)
        assert together.tolist() == list(dict.fromkeys(itertools.chain(*one_by_one)))
        assert len(set(together.tolist())) == len(together)
    none = noun_token_ids([], offsets, ids, text)
    assert none.shape == (0,)
    assert none.dtype == np.int32


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_that_occurs_twice(tokenizers: dict[str, Any], kind: str) -> None:
    """The caller knows where the question begins; the same words elsewhere do not count."""
    question = "dog"
    text, shift = template(question, system="A dog. ")
    offsets, ids, pieces = encode(tokenizers[kind], text)
    got = noun_token_ids(
        [noun.span(shift) for noun in lexicon().extract(question)], offsets, ids, text
    )
    at = [i for i, (a, b) in enumerate(offsets) if a < shift + 3 and b > shift and b > a]
    assert got.tolist() == list(dict.fromkeys(ids[i] for i in at))
    # After a space the word is another token than after a line break.
    spaced = {"▁dog", "Ġdog"}
    assert spaced & set(pieces)
    assert not spaced & set(tokenizers[kind].convert_ids_to_tokens(got.tolist()))


def test_words_alone_are_other_tokens(tokenizers: dict[str, Any]) -> None:
    """Why nouns are looked up in context: the space before a word belongs to its token."""
    text, _ = template("Is there a dog?")
    start = text.index("dog")
    offsets, ids, pieces = encode(tokenizers["qwen2"], text)
    got = noun_token_ids([(start, start + 3)], offsets, ids, text)
    assert tokenizers["qwen2"].convert_ids_to_tokens(got.tolist()) == ["Ġdog"]
    assert not set(got.tolist()) & set(encode(tokenizers["qwen2"], "dog")[1])
    assert offsets[pieces.index("Ġdog")] == (start - 1, start + 3)


@pytest.mark.parametrize("kind", ["llama-legacy", "llama", "llama-file"])
def test_lone_markers_are_no_nouns(tokenizers: dict[str, Any], kind: str) -> None:
    marker = tokenizers[kind].convert_tokens_to_ids("▁")
    # In the text's first position the marker claims the first letter of the word.
    offsets, ids, pieces = encode(tokenizers[kind], "école")
    assert pieces[:4] == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    assert list(offsets[1]) == list(offsets[2]) == list(offsets[3]) == [0, 1]
    assert marker not in noun_token_ids([(0, 5)], offsets, ids, "école", pieces=pieces)
    assert list(noun_token_ids([(0, 5)], offsets, ids, "école", pieces=pieces)) == list(
        dict.fromkeys(ids[2:])
    )
    # After a placeholder it stands on a space or a line break, whatever the span says.
    text = "USER: <image> école"
    offsets, ids, pieces = encode(tokenizers[kind], text)
    assert marker not in noun_token_ids([(13, 19)], offsets, ids, text)


def test_special_tokens_and_bytes_by_hand() -> None:
    text = "<i> né dog\n"
    offsets = [(0, 0), (0, 3), (3, 4), (3, 5), (5, 6), (5, 6), (6, 10), (10, 11), (0, 0)]
    ids = [1, 7, 20, 21, 22, 23, 24, 25, 2]
    assert noun_token_ids([(4, 6)], offsets, ids, text).tolist() == [21, 22, 23]
    assert noun_token_ids([(7, 10)], offsets, ids, text).tolist() == [24]
    assert noun_token_ids([(0, 11)], offsets, ids, text).tolist() == [7, 21, 22, 23, 24]
    assert noun_token_ids([(6, 7)], offsets, ids, text).tolist() == [24]
    # Order is that of the text, not of the spans; arrays serve as well as lists.
    arrays = np.array(offsets), np.array(ids)
    assert noun_token_ids([(7, 10), (4, 6)], *arrays, text).tolist() == [21, 22, 23, 24]
    assert noun_token_ids([(4, 6), (7, 10)], *arrays, text).tolist() == [21, 22, 23, 24]
    assert noun_token_ids([(4, 6)], offsets, [5] * 9, text).tolist() == [5]


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8)), max_size=12),
    st.lists(st.tuples(st.integers(0, 29), st.integers(1, 8)), max_size=8),
    st.text("ab \n", min_size=40, max_size=40),
)
def test_tokens_are_those_that_overlap_a_noun(
    rows: list[tuple[int, int]], nouns: list[tuple[int, int]], text: str
) -> None:
    offsets = [(begin, begin + size) for begin, size in rows]
    spans = [(begin, begin + size) for begin, size in nouns]
    want = [
        index
        for index, (begin, end) in enumerate(offsets)
        if text[begin:end].strip() and any(begin < b and end > a for a, b in spans)
    ]
    ids = list(range(len(rows)))
    assert noun_token_ids(spans, offsets, ids, text).tolist() == want


def test_each_token_is_looked_at_once() -> None:
    """Not once for each noun: a prompt's nouns and tokens grow together."""

    class Counted(list[tuple[int, int]]):
        reads = 0

        def __iter__(self) -> Any:
            for span in super().__iter__():
                Counted.reads += 1
                yield span

    text = "dog " * 2000
    spans = Counted((i, i + 3) for i in range(0, len(text), 4))
    offsets = np.array(list(spans))
    Counted.reads = 0
    got = noun_token_ids(spans, offsets, np.arange(2000), text)
    assert got.tolist() == list(range(2000))
    assert Counted.reads <= 4 * 2000


@pytest.mark.parametrize(
    ("spans", "offsets", "ids", "pieces", "message"),
    [
        ([(0, 3)], None, [1], None, "fast tokenizer"),
        ([(0, 3)], [(0, 3)], [1, 2], None, "2 ids, 1 offsets: pass those of one tokenizer call"),
        ([(0, 3)], [(0, 3)], [1], ["a", "b"], "1 ids, 1 offsets and 2 pieces"),
        ([(0, 4)], [(0, 3)], [1], None, "does not lie in a text of 3 characters"),
        ([(-1, 2)], [(0, 3)], [1], None, "does not lie"),
        ([(2, 2)], [(0, 3)], [1], None, "does not lie"),
    ],
)
def test_wrong_token_calls(spans: Any, offsets: Any, ids: Any, pieces: Any, message: str) -> None:
    with pytest.raises(CallError, match=message):
        noun_token_ids(spans, offsets, ids, "dog", pieces=pieces)
