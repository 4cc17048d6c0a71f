"""Two small benchmarks of pocket scenes, with lmms-lab's columns: POPE-like and VQAv2-like."""

import io
import itertools
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from resprune_jax.experiments.pocket.scenes.frozen import balanced_set
from resprune_jax.experiments.pocket.scenes.scene import render

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FEATURES = '{"info": {"features": {"image": {"_type": "Image"}}}}'
"""What the Hub's files say of their columns: lmms-eval's own tasks read pictures by it."""
SPLITS = ("adversarial", "popular", "random")


def write_benchmarks(folder: Path, scenes: int) -> tuple[Path, Path]:
    """Write the Parquet files of the first scenes of the validation set.

    Args:
        folder: for pope.parquet and vqav2.parquet.
        scenes: how many; POPE has a question about each, VQAv2 four.

    Returns:
        The two files.
    """
    pope: list[dict[str, object]] = []
    vqa: list[dict[str, object]] = []
    for number, (scene, questions) in enumerate(
        itertools.islice(balanced_set("cpu", "validation"), scenes)
    ):
        file = io.BytesIO()
        Image.fromarray(render(scene)).save(file, "PNG")
        picture = {"bytes": file.getvalue(), "path": f"scene-{number}.png"}
        for question in questions:
            row = {"question_id": str(len(pope)), "question": question.question, "image": picture}
            if question.family == "existence":
                split = question.kind if question.kind in SPLITS else SPLITS[number % 3]
                pope.append({**row, "answer": question.answer, "category": split})
            else:
                answers = [{"answer": question.answer, "answer_id": n} for n in range(10)]
                own = {"question_id": len(vqa), "answers": answers, "answer_type": question.family}
                vqa.append({**row, **own})
    paths = folder / "pope.parquet", folder / "vqav2.parquet"
    for path, rows in zip(paths, (pope, vqa), strict=True):
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        arrays = {
            name: pa.array(values, IMAGE if name == "image" else None)
            for name, values in columns.items()
        }
        table = pa.table(arrays).replace_schema_metadata({"huggingface": FEATURES})
        pq.write_table(table, path, row_group_size=16)
    return paths
