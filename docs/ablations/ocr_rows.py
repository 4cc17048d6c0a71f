"""Reading questions of the pocket scenes with and without TextVQA's line of reference OCR tokens.

usage: python docs/ablations/ocr_rows.py SPLIT SCENES FOLDER

A sweep reads FOLDER/rows.jsonl.
"""

import json
import sys
from itertools import islice
from pathlib import Path

from PIL import Image

from resprune_jax.experiments.pocket import balanced_set, render

split, scenes, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
folder.mkdir(parents=True)
rows = []
for number, (scene, questions) in enumerate(islice(balanced_set("cpu", split), scenes)):
    picture = f"{number}.png"
    Image.fromarray(render(scene)).save(folder / picture)
    line = "Reference OCR token: " + ", ".join(text.printed for text in scene.texts)
    for place, asked in enumerate(questions):
        if asked.family != "reading":
            continue
        question, *rest = asked.prompt.rsplit("\n", 1)
        for category, lines in (("without", [question]), ("with", [question, line])):
            rows.append(
                {
                    "id": f"{number}/{place}/{category}",
                    "image": picture,
                    "question": "\n".join([*lines, *rest]),
                    "answer": asked.answer,
                    "metric": "pocket",
                    "category": category,
                }
            )
text = "".join(json.dumps(row) + "\n" for row in rows)
(folder / "rows.jsonl").write_text(text, encoding="utf-8")
