"""What the commands share: their common options, checks of option values, the compilation cache."""

import dataclasses
import importlib
import inspect
import logging
import math
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from resprune_jax.arguments import settings_by_name
from resprune_jax.choices import Precision
from resprune_jax.errors import CallError, ResPruneError, printable
from resprune_jax.experiments import stopping
from resprune_jax.models.checkpoint.shipped import SHIPPED
from resprune_jax.models.prompts.budgets import Keep
from resprune_jax.models.prompts.options import CallOptions

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger("resprune_jax")

DType = Literal["float32", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True)
class Command:
    """One entry of the command registry: the options as a dataclass, and what runs them."""

    options: type
    run: Callable[[Any], int]


Checkpoint = Annotated[str, tyro.conf.arg(metavar="DIR_OR_ID")]

WeightsDType = Annotated[
    DType | None,
    tyro.conf.arg(
        metavar="{float32,bfloat16,float16}",
        help_behavior_hint="(default: the checkpoint's)",
        help="Number format of the weights.",
    ),
]

ProductPrecision = Annotated[
    Precision | None,
    tyro.conf.arg(
        metavar=f"{{{','.join(get_args(Precision))}}}",
        help_behavior_hint="(default: the weights')",
        help="What products of float32 weights are computed in.",
    ),
]

ClipCheckpoint = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="DIR_OR_ID",
        help_behavior_hint="(default: none)",
        help="The CLIP that the model's vision tower is from, such as"
        " openai/clip-vit-large-patch14-336, for methods that read its texts (trim, cdpruner).",
    ),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options of every command that reads a checkpoint."""

    model: Checkpoint
    """Checkpoint folder in Hugging Face format, the id of one on the Hub, or pocket for the small
    model that comes with this package."""
    revision: Annotated[
        str | None, tyro.conf.arg(metavar="REV", help_behavior_hint="(default: main)")
    ] = None
    """Branch, tag or commit of a Hub id."""
    debug: bool = False
    """Show the traceback when something fails."""


def shown(metavar: str, default: str | None = "", help_text: str | None = None) -> Any:
    """How an option shows in the help: its value's name, and what stands for its default."""
    hint = f"(default: {default})" if default else default
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=hint, help=help_text)


ChatTemplate = Annotated[
    Path | None,
    tyro.conf.arg(
        name="chat-template",
        metavar="FILE",
        help_behavior_hint="(default: the checkpoint's)",
        help="A Jinja chat template in place of the checkpoint's, for one that came without.",
    ),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatOptions(ModelOptions):
    """Options of commands that ask a checkpoint a question."""

    template: ChatTemplate = None


def call_options(cls: type) -> type:
    """Let a subclass of `CallOptions` show the fields that it leaves as they are in its help.

    Their meaning and what None stands for come from `CallOptions`. Below `@dataclass`.
    """
    kinds = get_type_hints(CallOptions)
    for option in dataclasses.fields(CallOptions):
        if option.name in cls.__annotations__:
            continue
        kind, unset = kinds[option.name], option.metadata["unset"]
        if kind is Any:
            kind = float | None
        single = next((part for part in get_args(kind) if part is not type(None)), kind)
        names = get_args(kind if get_origin(kind) is Literal else single)
        look: dict[str, Any] = {"help": option.metadata["help"]}
        if names or single in (int, float):
            look["metavar"] = f"{{{','.join(names)}}}" if names else "N" if single is int else "X"
        if unset:
            look["help_behavior_hint"] = f"(default: {unset})"
        cls.__annotations__[option.name] = Annotated[kind, tyro.conf.arg(**look)]
        setattr(cls, option.name, option.default)
    return cls


def reason(error: BaseException) -> str:
    """What to tell a user about an error: one line, an unforeseen kind named as such."""
    if isinstance(error, ResPruneError):
        text = str(error)
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    else:
        text = f"unexpected {type(error).__name__}: {error}"
    return printable(text)


def model_name(model: str) -> str:
    """The checkpoint as it is recorded in results: an absolute path for a folder, else the id."""
    if model in SHIPPED:
        return model
    try:
        path = Path(model).expanduser()
        return str(path.resolve()) if path.is_dir() else model
    except (OSError, RuntimeError, ValueError):  # no path at all; whoever opens it says so
        return model


def parse_keep(value: object, where: str = "--keep") -> Keep:
    """Read a budget of visual tokens as a person writes it.

    Args:
        value: "128" or 128 (a count), "0.222" or 0.222 (a ratio of the image's own tokens), "full",
            "none" or None (every token). 1.0 is refused: it could mean one token or all of them.
        where: how the caller wrote it, for the message.

    Returns:
        A count as int, a ratio in (0, 1) as float, or None for every token.

    Raises:
        CallError: zero, negative, NaN, a float of 1 or more, or no number at all.
    """
    way_out = "write a count such as 128, a ratio such as 0.222, or full for every visual token"
    if isinstance(value, str):
        text = value.strip().lower()
        if text in ("none", "full"):
            return None
        if re.fullmatch(r"[+-]?\d{1,18}", text):
            value = int(text)
        else:
            try:
                value = float(text)
            except ValueError:
                raise CallError(f"{where} {value!r} is not a number: {way_out}") from None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CallError(f"{where} {value!r} is not a number: {way_out}")
    if isinstance(value, int):
        if value < 1:
            raise CallError(f"{where} {value} keeps no visual token: {way_out}")
        if value >= 10**18:
            raise CallError(f"{where} is a number of {len(str(value))} digits: {way_out}")
        return value
    if not math.isfinite(value) or value <= 0.0:
        raise CallError(f"{where} {value} is not a budget: {way_out}")
    if value == 1.0:
        raise CallError(f"{where} 1.0 could mean one token or all: write 1, or full for every one")
    if value > 1.0:
        raise CallError(f"{where} {value} is neither a count nor a ratio below 1: {way_out}")
    return value


def method_and_settings(written: str) -> tuple[str, dict[str, Any]]:
    """A method's name and settings, of NAME, NAME:SETTING=VALUE,..., or FILE.py:NAME.

    Raises:
        CallError: settings that cannot be read.
    """
    head, _, told = written.rpartition(":")
    if head and "=" in told:
        return head, settings_by_name(re.split(r",(?=\w+=)", told))  # layers=2,8,16 is one
    return written, {}


def check_number(
    name: str,
    value: float,
    low: float,
    high: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
) -> None:
    """Refuse an option outside [low, high]; `above` leaves out `low`, `below` leaves out `high`.

    Raises:
        CallError: NaN, an infinity, or a number out of range; the message names the range.
    """
    fits = (value > low if above else value >= low) and (value < high if below else value <= high)
    if not (math.isfinite(value) and fits):
        floor = f"above {low:g}" if above else f"at least {low:g}"
        roof = "" if math.isinf(high) else f" and {'below' if below else 'at most'} {high:g}"
        raise CallError(f"{name} is {value:g}: it must be a number {floor}{roof}")


def status_of(path: Path, name: str) -> os.stat_result | None:
    """What lies at a path that somebody typed, None where there is nothing.

    Raises:
        CallError: a path that no file can have, a loop of links, a folder that may not be entered.
    """
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:  # a NUL, half of a surrogate pair
        raise CallError(f"{name} {str(path)!r} is no path: {error}") from None
    except OSError as error:
        raise CallError(f"{name} {path} cannot be used: {error.strerror}") from None


def check_file(path: Path, name: str) -> None:
    """Refuse an input file that is not there or is not a file."""
    status = status_of(path, name)
    if status is None:
        if link := re.match(r"([A-Za-z][A-Za-z0-9+.-]{1,9}):/", str(path)):
            raise CallError(
                f"{name} {link[1]}:// links are not fetched: download the file and give its path"
            )
        raise CallError(f"{name} {path} does not exist: check the path")
    if not stat.S_ISREG(status.st_mode):
        raise CallError(f"{name} {path} is not a file: give the path of one")
    if not os.access(path, os.R_OK):
        raise CallError(f"{name} {path} cannot be read: permission denied")


def check_target(path: Path, name: str, suffixes: tuple[str, ...] = ()) -> None:
    """Refuse an output path that cannot become a file, before any work is spent on it."""
    status = status_of(path, name)
    if status is not None and not stat.S_ISREG(status.st_mode):
        raise CallError(f"{name} {path} is not a regular file: give the path of one")
    folder = path.parent
    above = status_of(folder, name)
    if above is None or not stat.S_ISDIR(above.st_mode):
        raise CallError(f"{name} {path}: the folder {folder} does not exist: make it first")
    target = folder if status is None else path
    if not os.access(target, os.W_OK):
        raise CallError(f"{name} {path}: no permission to write to {target}")
    if suffixes and path.suffix.lower() not in suffixes:
        raise CallError(f"{name} {path} must end in one of {', '.join(suffixes)}")


def make_folder(path: Path, name: str) -> None:
    """Make a folder for outputs, or say which option names what cannot be one."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CallError(f"{name} {path} cannot be made a folder: {error.strerror}") from None
    except ValueError as error:
        raise CallError(f"{name} {str(path)!r} is no path: {error}") from None


def cache_argument(module: Any) -> str:
    """What a transformers module calls the argument that takes the cache of an earlier call.

    "cache" from transformers 5.24 on, where the name before it is deprecated, "past_key_values" up
    to 5.23.

    Args:
        module: a transformers model, or one of its decoders.
    """
    names = inspect.signature(module.forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def console(stderr: bool = False) -> "Console":
    """A rich console on standard output or standard error; rich is imported here, not before."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def user_cache_dir() -> Path | None:
    """The folder for this user's caches: XDG_CACHE_HOME, or what the platform uses.

    None where this user has no home: HOME is not set, and the system does not know the user.
    """
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"])
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"])
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def import_models() -> None:
    """Import JAX and the models, as every command that computes does first.

    An interrupt that is raised while extension modules start up can crash the interpreter: it is
    heard behind the imports.
    """
    with stopping.whole():
        importlib.import_module("resprune_jax.models.load")


def use_compilation_cache() -> Path | None:
    """Keep compiled programs between runs of the commands (never set by importing the library).

    JAX_COMPILATION_CACHE_DIR, where it is set, names another folder, or none when it is empty. What
    XLA measures on a GPU to choose its kernels (autotuning) is kept in the same folder.

    Returns:
        The folder; None where nothing is kept.
    """
    import_models()
    import jax

    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder is None:
        try:
            folder = cache_folder()
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            logger.warning("compiled programs are not kept between runs: %s", why)
            return None
    # An empty name must not stay: XLA would keep what it measures in the working folder.
    jax.config.update("jax_compilation_cache_dir", folder or None)
    # JAX keeps what took a second to compile. A program that took less is still read faster, and
    # every one that is missing costs each process anew.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return Path(folder) if folder else None


def load_asked(options: Any) -> Any:
    """The model that a command's options name; its imports are slow and happen here.

    Args:
        options: `ChatOptions` with `dtype`, `precision` and `clip`.

    Returns:
        An `LVLM`.
    """
    use_compilation_cache()
    from resprune_jax.models.load import load_model

    return load_model(
        options.model,
        revision=options.revision,
        dtype=options.dtype,
        precision=options.precision,
        chat_template=options.template,
        clip=options.clip,
    )


def cache_folder() -> str:
    """The folder of compiled programs, which can be written to.

    Raises:
        OSError: it cannot.
        ValueError: it has no name that JAX can take.
    """
    caches = user_cache_dir()
    if caches is None:
        raise ValueError("this user has no home folder (set HOME or XDG_CACHE_HOME)")
    folder = caches / "resprune-jax" / "jax"
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(13, f"no permission to write to {folder}")
    name = str(folder)
    name.encode()  # JAX takes UTF-8; UnicodeEncodeError is a ValueError
    return name
