"""What the blocks of the documentation find on the machine: files, models of the Hub, names.

A page that needs another file, id or placeholder gets a row here.
"""

import io
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from tests.docs.pages import ROOT

PLACEHOLDERS = {
    "COMMAND": "answer", "M": "pocket", "DIR_OR_ID": "pocket",
    "F": "scene.png", "I": "scene.png", "IMAGE": "scene.png", "FILE": "scene.png",
    "T": "What color is the star?", "P": "What color is the star?", "T2": "Is there a heart?",
    "K": "64", "WxH": "640x480",
    "FILE.jsonl": "rows.jsonl", "OUT.jsonl": "out.jsonl", "OUT.png": "out.png",
    "FILE.json": "parts.json", "FILE.toml": "sweep.toml", "FILE.py:NAME": "quiet.py:Quiet",
    "FOLDER": "folder", "DIR": "folder", "OUT": "out", "RESULTS": "results", "TASKS": "tasks",
    "RUN_DIR": "pocket", "HOST:PORT": "127.0.0.1:9999",
}  # fmt: skip
"""What stands for what a reader puts in, where it is a word of its own."""

REQUIRED = {
    "": "results", "--model": "pocket", "--name": "pope", "--data": "pope.parquet", "--out": "out",
    "--output": "out", "--keep": "32", "--image": "scene.png", "--prompt": "What color is it?",
    "--overlay": "out.png", "--rows": "rows.jsonl",
}  # fmt: skip
"""What prose leaves out of a command that it names for one option; "" is what has no name."""

FOREIGN = {
    **dict.fromkeys(
        ["--tasks", "--device", "--limit", "--log_samples", "--use_cache", "--force_simple",
         "--apply_chat_template", "--model_args", "--include_path", "--batch_size", "--gen_kwargs",
         "--output_path", "--verbosity", "--num_fewshot"],
        "lmms-eval",
    ),
    "--xla_dump_to": "XLA", "--api-nproc": "VLMEvalKit", "--base-url": "VLMEvalKit",
}  # fmt: skip
"""Options of other programs that the prose speaks of."""


def scenes(count: int) -> list[tuple[Any, Any]]:
    """Scenes of the pocket model's validation set, each with its questions."""
    from resprune_jax.experiments.pocket.scenes.frozen import balanced_set

    return list(itertools.islice(balanced_set("cpu", "validation"), count))


def drawn(number: int = 0) -> Any:
    """A scene as an array (168, 168, 3)."""
    from resprune_jax.experiments.pocket import render

    return render(scenes(number + 1)[number][0])


def picture(path: Path) -> None:
    """A scene as a picture file."""
    Image.fromarray(drawn(path.stem[-1:] == "2")).save(path)


def rows(path: Path) -> None:
    """Rows for `--rows`, one of them with two questions' worth of budget."""
    name = f"{path.stem}-scene.png"
    picture(path.with_name(name))
    lines = [{"image": name, "prompt": text} for text in ("What color is the star?", "Is it red?")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def pope(path: Path) -> None:
    """Rows with lmms-lab's columns: a file, or the folder of one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = []
    for number, (scene, questions) in enumerate(scenes(3)):
        from resprune_jax.experiments.pocket import render

        file = io.BytesIO()
        Image.fromarray(render(scene)).save(file, "PNG")
        asked = next((own for own in questions if own.answer.lower() in ("yes", "no")), None)
        table.append({
            "question_id": str(number), "category": ("adversarial", "popular", "random")[number],
            "question": asked.question if asked else "Is there a star in the image?",
            "answer": asked.answer.lower() if asked else "yes",
            "image": {"bytes": file.getvalue(), "path": f"scene-{number}.png"},
        })  # fmt: skip
    if path.suffix != ".parquet":
        path.mkdir(parents=True)
        path = path / "test-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(table), path)


def video(path: Path) -> None:
    """A folder of frames."""
    path.mkdir()
    for number in range(4):
        Image.fromarray(drawn(number)).save(path / f"{number}.png")


def from_repository(name: str, **changes: str) -> Callable[[Path], None]:
    """A file or folder of this repository, at the same place.

    Args:
        name: from the top of the tree.
        **changes: settings of a TOML file that take other values.
    """

    def lay(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, path)
        else:
            text = (ROOT / name).read_text(encoding="utf-8")
            for setting, value in changes.items():
                text, count = re.subn(rf"(?m)^{setting} = .*", f"{setting} = {value}", text)
                assert count == 1, f"{name}: {setting} stands there {count} times"
            path.write_text(text, encoding="utf-8")

    return lay


FILES: dict[str, Callable[[Path], None]] = {
    "photo.jpg": picture, "photo.png": picture, "scene.png": picture, "a.jpg": picture,
    "b.jpg": picture, "frames/": video,
    "rows.jsonl": rows,
    "POPE/data": pope, "pope.parquet": pope,
    "docs/ablations/validation.toml": from_repository(
        "docs/ablations/validation.toml", examples="3"
    ),
    "docs/ablations/ocr_rows.py": from_repository("docs/ablations/ocr_rows.py"),
}  # fmt: skip
"""What lays a file that blocks read, by its name; the blocks may then write it anew."""


_SWEEP = (
    "resprune sweep --data pocket:validation --examples 8 --block 4 --methods none resprune"
    " --keep 1/9 --output"
)
MADE = {
    "results": f"{_SWEEP} results",
    "host0": f"{_SWEEP} host0 --num-processes 2 --process-id 0",
    "host1": f"{_SWEEP} host1 --num-processes 2 --process-id 1",
}
"""Likewise folders that a command makes, by their names."""


def needed(text: str, table: Iterable[str]) -> list[str]:
    """The names of a table that a block speaks of."""
    return [name for name in table if re.search(rf"(?<![\w./-]){re.escape(name)}(?![\w/-])", text)]


def lay(text: str, folder: Path) -> None:
    """Lay every file that a block names and that is not there yet."""
    for name in needed(text, FILES):
        path = folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            FILES[name](path)


_DRAWN = "from resprune_jax.experiments.pocket import frozen_set, render\n"
_DRAW = "import numpy\nrng = numpy.random.default_rng(0)\n"
NAMES = {
    "image": f"{_DRAWN}image = render(frozen_set(scenes=1)[0][0])",
    "question": 'question = "What color is the star?"',
    "images": f"{_DRAWN}images = [render(scene) for scene, _ in frozen_set(scenes=2)]",
    "prompts": 'prompts = ["What color is the star?", "Is there a heart?"]',
    "tokens": f"{_DRAW}tokens = rng.normal(size=(576, 256)).astype('float32')",
    "r": f"{_DRAW}r = rng.uniform(size=576).astype('float32')",
    "lvlm": 'from resprune_jax.models import load_model\nlvlm = load_model("pocket")',
}
"""What the prose introduces and code then uses, each as the code that makes it."""


def _llava(folder: Path) -> None:
    from tests.checkpoints.random import write_checkpoint

    write_checkpoint(folder)


def _next(folder: Path) -> None:
    from tests.checkpoints.llava_next import tiny_next

    tiny_next(folder)


def _onevision(folder: Path) -> None:
    from tests.checkpoints.onevision import tiny_onevision

    tiny_onevision(folder)


def _interleave(folder: Path) -> None:
    from tests.checkpoints.siglip import tiny_interleave

    tiny_interleave(folder)


def _qwen2(folder: Path) -> None:
    from tests.checkpoints.qwen_vl import tiny_qwen

    tiny_qwen(folder, variant="qwen2")


def _qwen(folder: Path) -> None:
    from tests.checkpoints.qwen_vl import tiny_qwen

    tiny_qwen(folder)


def _clip(folder: Path) -> None:
    from tests.checkpoints.clip import tiny_clip

    tiny_clip(folder)


HUB: dict[str, Callable[[Path], None]] = {
    "llava-hf/llava-1.5-7b-hf": _llava,
    "llava-hf/llava-1.5-13b-hf": _llava,
    "llava-hf/llava-v1.6-vicuna-7b-hf": _next,
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": _onevision,
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": _onevision,
    "llava-hf/llava-interleave-qwen-0.5b-hf": _interleave,
    "Qwen/Qwen2-VL-2B-Instruct": _qwen2,
    "Qwen/Qwen2-VL-7B-Instruct": _qwen2,
    "Qwen/Qwen2.5-VL-3B-Instruct": _qwen,
    "Qwen/Qwen2.5-VL-7B-Instruct": _qwen,
    "openai/clip-vit-large-patch14-336": _clip,
}
"""What writes a small random checkpoint in the place of a published one, by its id."""

COMMIT = "a" * 40


def hub_ids(text: str) -> list[str]:
    """The ids that a block names.

    Raises:
        KeyError: one that `HUB` has no row for.
    """
    found = sorted(set(re.findall(r"\b(?:llava-hf|Qwen|openai)/[\w.-]*\w", text)))
    if gone := [name for name in found if name not in HUB]:
        raise KeyError(f"{gone[0]} is no id of tests/docs/inputs.py: HUB")
    return found


def publish(name: str, home: Path) -> None:
    """Lay a checkpoint into a Hub cache as a download leaves it, once.

    Args:
        name: an id of `HUB`.
        home: the folder that HF_HOME names.
    """
    root = home / "hub" / ("models--" + name.replace("/", "--"))
    if root.exists():
        return
    snapshot = root / "snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    HUB[name](snapshot)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
