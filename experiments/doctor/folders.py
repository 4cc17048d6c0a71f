"""The folders that commands write to, the pictures that they read and draw, the nouns' tagger."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resprune_jax.experiments.doctor.findings import Finding, told

PROGRAMS = "JAX_COMPILATION_CACHE_DIR"


def programs() -> Iterator[Finding]:
    """The folder of compiled programs."""
    from resprune_jax.experiments.common import cache_folder

    named = os.environ.get(PROGRAMS)
    remedy = f"set {PROGRAMS} to a folder that can be written to, or to nothing"
    if named == "":
        said = f"{PROGRAMS} is empty: every command compiles anew"
        yield Finding("programs", "missing", said, f"unset {PROGRAMS}", {"folder": None})
        return
    if named and "://" in named:
        yield Finding("programs", "ok", f"{named}, not looked into", "", {"folder": named})
        return
    try:
        folder = Path(named) if named else Path(cache_folder())
    except (OSError, ValueError) as error:
        said = f"compiled programs cannot be kept: {told(error)}"
        yield Finding("programs", "FAULT", said, remedy, {"folder": None})
        return
    yield _writable("programs", folder, "compiled programs", remedy)


def _writable(name: str, folder: Path, what: str, remedy: str) -> Finding:
    """Whether a folder can be written to: tried, since rights alone do not tell."""
    facts: dict[str, Any] = {"folder": str(folder), "writable": True}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free
    except OSError as error:
        said = f"{what} cannot be kept in {folder}: {error.strerror or told(error)}"
        return Finding(name, "FAULT", said, remedy, {**facts, "writable": False})
    sizes = [_size(path) for path in folder.rglob("*")]
    facts |= {"bytes": sum(sizes), "files": sum(size > 0 for size in sizes), "free": free}
    said = f"{folder}, {_mib(sum(sizes))}, {_mib(free)} free on its disk"
    return Finding(name, "ok", said, "", facts)


def _size(path: Path) -> int:
    """Bytes of a regular file; another process may have taken it away."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _mib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def hub() -> Iterator[Finding]:
    """The cache of the Hugging Face Hub."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    offline = bool(constants.HF_HUB_OFFLINE)
    try:
        models = len(list(folder.glob("models--*"))) if folder.is_dir() else 0
    except OSError:
        models = 0
    facts: dict[str, Any] = {"folder": str(folder), "offline": offline, "models": models}
    held = f"{folder}, {models} model{'' if models == 1 else 's'}"
    if offline:  # it is read alone
        yield Finding("hub", "ok", f"{held}; HF_HUB_OFFLINE is set: nothing is fetched", "", facts)
        return
    try:
        above = next(each for each in (folder, *folder.parents) if each.exists())
        with tempfile.TemporaryFile(dir=above):
            pass
        free = shutil.disk_usage(above).free
    except OSError as error:
        said = f"checkpoints cannot be kept in {folder}: {error.strerror or told(error)}"
        remedy = "set HF_HOME to a folder that can be written to"
        yield Finding("hub", "FAULT", said, remedy, {**facts, "writable": False})
        return
    facts |= {"writable": True, "free": free}
    yield Finding("hub", "ok", f"{held}, {_mib(free)} free on its disk", "", facts)


CODECS = {"jpg": "JPEG", "zlib": "PNG", "webp": "WebP", "avif": "AVIF", "libtiff": "TIFF"}


def pictures() -> Iterator[Finding]:
    """The formats that this build of Pillow reads, and the fonts of drawn scenes."""
    from PIL import features

    from resprune_jax.experiments.pocket.scenes.shapes import FONTS, load_font

    absent = [name for codec, name in CODECS.items() if not features.check(codec)]
    facts = {"formats": [name for name in CODECS.values() if name not in absent]}
    if absent:
        said = f"this build of Pillow does not read {', '.join(absent)}"
        remedy = "pip install --force-reinstall --no-deps pillow"
        needed = {"JPEG", "PNG"} & set(absent)
        yield Finding("pictures", "FAULT" if needed else "missing", said, remedy, facts)
    else:
        said = f"Pillow reads {', '.join(facts['formats'])} and those that need no library"
        yield Finding("pictures", "ok", said, "", facts)
    try:
        for name in FONTS:
            load_font(name, 12)
    except (OSError, ImportError) as error:  # Pillow built without FreeType imports nothing
        said = f"the fonts of drawn scenes do not load: {told(error)}"
        remedy = "pip install --force-reinstall --no-deps matplotlib pillow"
        yield Finding("fonts", "FAULT", said, remedy)


def nouns() -> Iterator[Finding]:
    """The tagger that finds a question's nouns where none is named."""
    import importlib.util

    from resprune_jax.nouns import INSTALL, LEXICON, MODEL, load_pipeline

    real = importlib.util.find_spec(MODEL) is not None
    _, name = load_pipeline(MODEL if real else LEXICON)
    facts = {"tagger": name, "command": INSTALL}
    if real:
        yield Finding("tagger", "ok", f"{name}, the paper's", "", facts)
    else:
        said = f"nouns are found by the {name}; {MODEL}, the paper's tagger, is not installed"
        yield Finding("tagger", "missing", said, INSTALL, facts)
