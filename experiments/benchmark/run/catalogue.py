"""What each of the nine benchmarks needs of its data, and where the paper prints its number."""

from dataclasses import dataclass

from resprune_jax.errors import one_of
from resprune_jax.experiments.benchmark.prompts import LETTERS, PROMPTS


@dataclass(frozen=True)
class Facts:
    """Of one benchmark.

    Attributes:
        title: as its authors write it.
        needed: columns that every row must have.
        more: columns that are read where they are there.
        key: the column that names a row; "" where rows have no name.
        column: of the paper's tables.
        tokens: the most new tokens of an answer, where nothing else is said.
        submission: the file that is handed in somewhere; "" where there is none.
    """

    title: str
    needed: tuple[str, ...]
    more: tuple[str, ...]
    key: str
    column: str
    submission: str = ""
    tokens: int = 128


FACTS = {
    "vqav2": Facts(
        "VQAv2", ("question_id", "question"), ("answers", "answer_type"), "question_id", "VQA-v2",
        "vqav2.json",
    ),
    "gqa": Facts(
        "GQA", ("id", "imageId", "question"), ("answer", "types"), "id", "GQA", "gqa.json"
    ),
    "vizwiz": Facts(
        "VizWiz", ("question_id", "question"), ("answers", "category"), "question_id", "VizWiz",
        "vizwiz.json",
    ),
    "sqa-img": Facts(
        "ScienceQA-IMG", ("question", "choices", "answer"), ("hint", "subject"), "", "SQA-I"
    ),
    "textvqa": Facts(
        "TextVQA", ("question_id", "question", "ocr_tokens"), ("answers", "image_id"),
        "question_id",
        "TextVQA", "textvqa.json",
    ),
    "pope": Facts(
        "POPE", ("question", "answer"), ("question_id", "category"), "question_id", "POPE"
    ),
    "mme": Facts(
        "MME", ("question_id", "question", "answer", "category"), (), "question_id", "MME", "mme"
    ),
    "mmbench-en": Facts(
        "MMBench-en", ("index", "question", "A", "B"),
        (*LETTERS[2:], "hint", "answer", "category", "L2-category", "split"), "index", "MMB-en",
        "mmbench-en.xlsx",
    ),
    "mm-vet": Facts(
        "MM-Vet", ("question_id", "question"), ("capability",), "question_id", "MM-Vet",
        "mm-vet.json", 1024,
    ),
}  # fmt: skip
"""By benchmark, a key of `PROMPTS`. Pictures lie in the column "image" of all but GQA."""

assert FACTS.keys() == PROMPTS.keys()


def facts_of(name: str) -> Facts:
    """The facts of a benchmark.

    Raises:
        CallError: there is none of that name.
    """
    one_of("benchmark", name, tuple(FACTS))
    return FACTS[name]
