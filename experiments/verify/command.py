"""`resprune verify`: a checkpoint on this machine against the installed torch and transformers.

The reference runs first and leaves small arrays behind, then our side: two models are never in
memory together. The report is plain text, to be pasted into an issue.
"""

import dataclasses
import importlib.util
import json
import logging
import os
import platform
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from resprune_jax.errors import CallError
from resprune_jax.experiments.common import (
    ChatOptions,
    check_file,
    use_compilation_cache,
)
from resprune_jax.experiments.verify.reference import Reference
from resprune_jax.experiments.words import version_of

if TYPE_CHECKING:
    from PIL import Image

    from resprune_jax.experiments.verify.checks import Check

logger = logging.getLogger("resprune_jax")

QUESTION = "What is in this picture? Describe it in one sentence."
WIDTH = 100
"""Columns of the report."""

PACKAGES = (
    *("resprune-jax", "jax", "jaxlib", "flax", "transformers", "torch", "tokenizers"),
    *("safetensors", "numpy", "pillow"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyOptions(ChatOptions):
    """Check a checkpoint on this machine against torch and transformers; prints a report."""

    dtype: Annotated[
        Literal["float32", "bfloat16"],
        tyro.conf.arg(metavar="{float32,bfloat16}", help_behavior_hint="(default: float32)"),
    ] = "float32"
    """Number format of both sides. float32 is the sharp check; bfloat16 takes half the memory and
    finds gross faults only."""
    image: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """A picture of your own in place of the built-in one."""
    question: Annotated[str, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")] = QUESTION
    """A question about it."""
    torch_device: Annotated[
        str, tyro.conf.arg(metavar="DEVICE", help_behavior_hint="(default: cpu)")
    ] = "cpu"
    """Where torch runs: cpu, cuda or another of its names."""


def built_in_picture() -> "Image.Image":
    """A house, a tree and the sun above a meadow, drawn with some noise: 480 x 360 pixels."""
    from PIL import Image, ImageDraw

    width, height = 480, 360
    rows, columns = np.mgrid[0:height, 0:width]
    sky = np.stack([90 + rows * 0.25, 150 + rows * 0.2, 235 - rows * 0.05], axis=-1)
    grass = np.stack([60 + columns * 0.06, 150 - (rows - 230) * 0.4, 50 + rows * 0.0], axis=-1)
    scene = np.where((rows < 230)[..., None], sky, grass)
    picture = Image.fromarray(scene.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((370, 30, 440, 100), fill=(255, 220, 60))
    draw.rectangle((110, 160, 260, 280), fill=(215, 190, 150))
    draw.polygon([(90, 165), (185, 80), (280, 165)], fill=(170, 50, 40))
    draw.rectangle((165, 215, 205, 280), fill=(90, 55, 35))
    draw.rectangle((125, 185, 155, 210), fill=(150, 200, 230))
    draw.rectangle((352, 190, 372, 285), fill=(100, 70, 40))
    draw.ellipse((305, 100, 420, 215), fill=(40, 110, 50))
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))


def check(options: VerifyOptions) -> None:
    """Refuse what cannot work before anything is loaded.

    Raises:
        CallError: torch is not installed or lacks the device, no such picture or chat template, no
            question.
    """
    if importlib.util.find_spec("torch") is None:
        raise CallError(
            "verify compares with torch, which is not installed here: install it"
            " (pip install torch; the CPU build will do) and call again"
        )
    if not options.question.strip():
        raise CallError("--question is empty: write a question, or leave it out")
    if options.image is not None:
        check_file(options.image, "--image")
    if options.template is not None:
        check_file(options.template, "--chat-template")
    import torch

    try:
        torch.empty(1, device=options.torch_device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CallError(
            f"--torch-device {options.torch_device} is not a device of this torch ({reason}):"
            " use cpu"
        ) from None


def run(options: VerifyOptions, *, reference_folder: Path | None = None) -> int:
    """Carry out `resprune verify`.

    Args:
        options: the command's options.
        reference_folder: another checkpoint for torch, to see a difference found; default the same.

    Returns:
        0 if every check passed, else 1.

    Raises:
        CallError: a wrong call, torch missing among them.
        RunError: the checkpoint or the picture cannot be read, or transformers cannot run it.
    """
    check(options)
    from resprune_jax.models.checkpoint.hub import resolve_checkpoint
    from resprune_jax.models.images.files import open_image

    picture = built_in_picture() if options.image is None else open_image(options.image)
    from resprune_jax.models.families.registry import (
        checkpoint_config,
        read_config,
        read_model_config,
    )

    # An unsupported one is refused before gigabytes are fetched, and before they are read.
    folder = resolve_checkpoint(
        options.model,
        revision=options.revision,
        judge=lambda folder: read_model_config(read_config(folder)),
    )
    use_compilation_cache()
    from resprune_jax.experiments.verify.checks import run_checks
    from resprune_jax.experiments.verify.ours import Ours
    from resprune_jax.experiments.verify.theirs import make_reference
    from resprune_jax.models.prompts.chat_files import given_template
    from resprune_jax.models.prompts.generation_file import read_generation_settings

    template = None if options.template is None else given_template(options.template)
    raw, config = checkpoint_config(folder)
    read_generation_settings(folder, config.text.vocab_size, raw)
    say_memory(folder, options.dtype)
    _progress(f"running torch on {options.torch_device}")
    reference = make_reference(
        reference_folder or folder, picture, options.question, dtype=options.dtype,
        device=options.torch_device, template=template,
    )  # fmt: skip
    _progress(f"torch took {reference.seconds:.0f} s and is gone; now ours")
    begin = time.perf_counter()
    ours = Ours(reference, folder, picture, options.question, options.dtype, template)
    lines: list[Check] = []
    for line in run_checks(ours, debug=options.debug):
        lines.append(line)
        _progress(f"{line.name}: {line.state}")
    seconds = (reference.seconds, time.perf_counter() - begin)
    print("\n".join(report(options, folder, picture, ours, lines, seconds)))
    return 0 if all(line.state == "passed" for line in lines) else 1


def report(
    options: VerifyOptions,
    folder: Path,
    picture: "Image.Image",
    ours: Any,
    lines: Sequence["Check"],
    seconds: tuple[float, float],
) -> list[str]:
    """The report's lines.

    Args:
        options: the command's options.
        folder: the checkpoint.
        picture: what was shown.
        ours: the `Ours` that was checked.
        lines: its checks.
        seconds: that torch and ours took.
    """
    reference: Reference = ours.reference
    which = "the built-in picture" if options.image is None else options.image.name
    total, kept = len(reference.embeddings), len(reference.picks)
    precise = options.dtype == "float32"
    measure = "products in full precision; worst error" if precise else "root mean square error"
    about = {
        "model": f"{_name(options, folder)}: {_described(folder, ours)}",
        "versions": _versions(),
        "machine": _machine(options.torch_device),
        "dtype": f"{options.dtype}; {measure} up to {_bound(options.dtype)} of the deviation",
        "processor": "; ".join([reference.processor, *reference.notes]),
        "image": f"{which}, {picture.width} x {picture.height}: {total} visual tokens, {kept} where"
        " pruned",
        "settings": _settings(ours.settings.applied),
        "question": options.question,
        "answer": json.dumps(ours.answer, ensure_ascii=False) if ours.answer else "none",
        "seconds": f"torch {seconds[0]:.1f}, ours {seconds[1]:.1f}, compiling included",
    }
    if options.template is not None:
        about["template"] = options.template.name
    made = ["resprune verify", ""]
    for name, text in about.items():
        made += _wrapped(f"{name:10}", text)
    made.append("")
    for line in lines:
        made += _wrapped(f"{line.name:22}{line.state:8}", line.found)
        if line.state != "passed" and line.means:
            made += _wrapped(" " * 30, f"likely: {line.means}")
    counts = {state: sum(line.state == state for line in lines) for state in
              ("passed", "FAILED", "not run")}  # fmt: skip
    said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return [*made, "", said]


def _settings(applied: Mapping[str, Any]) -> str:
    """What the checkpoint's own settings do to greedy answers, on both sides."""
    return "; ".join(f"{name} {value}"[:120] for name, value in applied.items()) or "plain greedy"


def _wrapped(head: str, text: str) -> list[str]:
    behind = " " * len(head)
    return textwrap.wrap(
        " ".join(text.split()), WIDTH, initial_indent=head, subsequent_indent=behind,
        break_long_words=False,
    )  # fmt: skip


def _bound(dtype: str) -> str:
    from resprune_jax.experiments.verify.findings import BOUNDS

    return f"{BOUNDS[dtype]:g}"


def _name(options: VerifyOptions, folder: Path) -> str:
    """The Hub id with its commit, or the folder's own name: no path of the user's machine."""
    path = Path(options.model).expanduser()
    return path.resolve().name if path.is_dir() else f"{options.model} at {folder.name[:12]}"


def _described(folder: Path, ours: Any) -> str:
    text = ours.config.text
    return (
        f"{ours.family.name}, {text.num_layers} decoder layers of {text.hidden_size},"
        f" {text.num_heads} heads over {text.num_kv_heads}, vocabulary {text.vocab_size}"
    )


def _versions() -> str:
    python = f"python=={platform.python_version()}"
    return " ".join([python, *(f"{name}=={version_of(name)}" for name in PACKAGES)])


def _machine(torch_device: str) -> str:
    import jax

    devices = jax.devices()
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = f"{_total_memory() / 2**30:.0f} GiB"
    return (
        f"{platform.system()} {platform.machine()}, {cores} cores, {memory};"
        f" jax on {len(devices)} x {devices[0].platform} ({kinds}), torch on {torch_device}"
    )


def _total_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def free_memory() -> int:
    """Bytes of memory that a process may still take."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return _total_memory()
    rows = dict(row.split(":", 1) for row in meminfo.read_text().splitlines())
    return int(rows["MemAvailable"].split()[0]) * 1024


def say_memory(folder: Path, dtype: str) -> None:
    """Warn where one side alone may not fit."""
    from resprune_jax.models.checkpoint.safetensors_files import WeightFiles

    numbers = sum(int(np.prod(tensor.shape)) for tensor in WeightFiles(folder).tensors)
    needed, free = numbers * (4 if dtype == "float32" else 2), free_memory()
    if needed > 0.9 * free:
        other = "use --dtype bfloat16, half of that" if dtype == "float32" else "free some first"
        logger.warning(
            "each side takes %.1f GiB in %s, one after the other, and %.1f GiB are free: %s",
            needed / 2**30, dtype, free / 2**30, other,
        )  # fmt: skip


def _progress(text: str) -> None:
    print(f"resprune: {text}", file=sys.stderr)
