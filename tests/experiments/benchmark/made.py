"""Invented rows of the nine benchmarks with lmms-lab's columns, and the files that hold them."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Row = dict[str, Any]

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(shade: int) -> dict[str, Any]:
    """A grey picture as `datasets` stores it."""
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, shade, shade)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": f"{shade}.png"}


def people(*answers: str) -> list[Row]:
    """Ten annotators of VQAv2; the last answer is that of all who are left."""
    own = [*answers, *(answers[-1:] * (10 - len(answers)))]
    return [
        {"answer": text, "answer_confidence": "yes", "answer_id": n + 1}
        for n, text in enumerate(own)
    ]


ROWS: dict[str, list[Row]] = {
    "vqav2": [
        {"question_id": 1000, "question": "Is the kite up?", "answers": people("yes"),
         "answer_type": "yes/no", "image_id": 1, "image": picture(1)},
        {"question_id": 1001, "question": "How many kites?", "answers": people("2", "2", "3"),
         "answer_type": "number", "image_id": 1, "image": picture(1)},
    ],
    "gqa": [
        {"id": "0201", "imageId": "n1", "question": "Is the bowl red?", "answer": "no",
         "types": {"detailed": "verify", "semantic": "attr", "structural": "verify"}},
        {"id": "0202", "imageId": "n2", "question": "Which colour is it?", "answer": "Blue",
         "types": {"detailed": "query", "semantic": "attr", "structural": "query"}},
        {"id": "0203", "imageId": "n1", "question": "What is it?", "answer": "bowl",
         "types": {"detailed": "query", "semantic": "obj", "structural": "query"}},
    ],
    "vizwiz": [
        {"question_id": "VizWiz_val_00000001", "question": "What does the NASA cup say?",
         "answers": ["unanswerable"] * 10, "category": "unanswerable", "image": picture(2)},
        {"question_id": "VizWiz_val_00000002", "question": "is it on",
         "answers": ["yes"] * 6 + ["no"] * 4, "category": "yes/no", "image": picture(3)},
    ],
    "sqa-img": [
        {"question": "Which is harder?", "choices": ["iron", "wool"], "answer": 0,
         "hint": "Look at the cubes.", "subject": "natural science", "image": picture(4)},
        {"question": "What is farthest north?", "choices": ["Maine", "Iowa", "Utah"], "answer": 2,
         "hint": "", "subject": "social science", "image": picture(5)},
    ],
    "textvqa": [
        {"question_id": 34602, "question": "what is the brand of this DAKOTA camera?",
         "answers": ["dakota"] * 8 + ["clos culombu"] * 2, "ocr_tokens": ["DAKOTA", "DIGITAL"],
         "image_id": "003a8ae2ef43b901", "image": picture(6)},
        {"question_id": 34603, "question": "what does it say?", "answers": ["nothing"] * 10,
         "ocr_tokens": [], "image": picture(7)},
    ],
    "pope": [
        {"id": str(n), "question_id": str(n + 1), "image_source": "X",
         "question": f"Is there a {what} in the image?",
         "answer": ("yes", "no")[n % 2], "category": split, "image": picture(10 + n % 2)}
        for split in ("random", "popular", "adversarial")
        for n, what in enumerate(("dog", "imange", "cup", "car"))
    ],
    "mme": [
        {"question_id": f"{category}/{n}.jpg", "answer": answer, "category": category,
         "question": f"Is this {what} {n}? Please answer yes or no.", "image": picture(20 + n)}
        for category in ("OCR", "code_reasoning")
        for n in range(2)
        for answer, what in (("Yes", "so"), ("No", "not"))
    ],
    "mmbench-en": [
        {"index": index, "question": "Who is it?", "hint": hint, "answer": answer, "A": options[0],
         "B": options[1], "C": options[2] if len(options) > 2 else "nan", "D": None,
         "category": "identity", "L2-category": "coarse", "source": "made", "split": "dev",
         "image": picture(30)}
        for index, hint, answer, options in (
            (7, "nan", "A", ("a cook", "a clerk", "a guest")),
            (1000007, "nan", "B", ("a guest", "a cook", "a clerk")),
            (2000007, "nan", "C", ("a clerk", "a guest", "a cook")),
            (8, "They wear hats.", "B", ("one", "two")),
            (1000008, "They wear hats.", "A", ("two", "one")),
        )
    ],
    "mm-vet": [
        {"question_id": "v1_0", "question": "What is x in the equation?", "answer": "-1<AND>-5",
         "capability": "ocr,math", "image_source": "u", "image": picture(40)},
        {"question_id": "v1_1", "question": "What does it say?\nName all lines.", "answer": "x",
         "capability": "ocr", "image_source": "u", "image": picture(41)},
    ],
}  # fmt: skip
"""By benchmark; GQA's pictures lie apart, see `album`."""


def parquet(path: Path, rows: Sequence[Row]) -> Path:
    """Rows as a Parquet file."""
    table = pa.Table.from_pylist(list(rows))
    if "image" in table.schema.names:
        images = pa.array([row.get("image") for row in rows], IMAGE)
        table = table.set_column(table.schema.get_field_index("image"), "image", images)
    pq.write_table(table, path)
    return path


def album(path: Path) -> Path:
    """The pictures of GQA's rows as a Parquet file."""
    return parquet(path, [{"id": "n1", "image": picture(50)}, {"id": "n2", "image": picture(51)}])
