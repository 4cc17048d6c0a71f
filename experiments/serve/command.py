"""`resprune serve`: load a model, listen, answer until told to end."""

import dataclasses
import importlib.util
import ipaddress
import math
import os
import sys
from pathlib import Path
from typing import Annotated

import tyro

from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments.common import (
    ChatOptions,
    ClipCheckpoint,
    ProductPrecision,
    WeightsDType,
    call_options,
    check_file,
    check_number,
    load_asked,
    model_name,
    parse_keep,
    shown,
)
from resprune_jax.models.prompts.options import CallOptions

KEY = "RESPRUNE_API_KEY"
"""The environment variable that holds the key that clients must have."""

NEEDED = ("uvicorn", "starlette", "prometheus_client")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerOptions(ChatOptions):
    """Where the server listens, and what requests may take."""

    host: Annotated[str, shown("ADDRESS", None)] = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all of this machine's, which asks for an API key."""
    port: Annotated[int, shown("N", None)] = 8000
    """Port to listen on; 0 takes a free one."""
    name: Annotated[str | None, shown("NAME", "the checkpoint's")] = None
    """Name of the model, as requests give it."""
    api_key_file: Annotated[
        Path | None,
        shown("FILE", f"{KEY} of the environment, else no key"),
    ] = None
    """File of the keys that clients may have, one a line."""
    image_folder: Annotated[Path | None, shown("DIR", "local files are refused")] = None
    """Requests may name images below this folder."""
    allow_host: Annotated[tuple[str, ...], shown("NAME ...", "other hosts are refused")] = ()
    """Requests may name images on these hosts, http:// or https://."""
    max_batch: Annotated[int, shown("N", None)] = 32
    """Requests that run together."""
    wait_ms: Annotated[float, shown("X", None)] = 10.0
    """Milliseconds that the first request of a batch waits for others."""
    max_waiting: Annotated[int, shown("N", None)] = 256
    """Requests that may wait; others get status 429."""
    max_body_mb: Annotated[float, shown("X", None)] = 32.0
    """Megabytes of a request's body; a larger one gets status 413."""
    max_memory_mb: Annotated[float, shown("X", None)] = 1024.0
    """Megabytes of all bodies and images that wait; beyond, requests get status 429."""
    max_images: Annotated[int, shown("N", None)] = 16
    """Images of a request."""
    max_pixels: Annotated[int, shown("N", None)] = 2**25
    """Pixels of an image."""
    timeout: Annotated[float, shown("X", None)] = 300.0
    """Seconds for an answer; a request that takes longer gets status 504."""
    body_timeout: Annotated[float, shown("X", None)] = 30.0
    """Seconds for a request's body to come; else it gets status 408."""
    image_cache_mb: Annotated[float, shown("X", None)] = 512.0
    """Megabytes of encoded images that are kept for further questions; 0 keeps none."""
    stream_tokens: Annotated[int, shown("N", None)] = 8
    """Tokens after which a stream is sent on, and a batch that nobody waits for ends."""
    warm_up: Annotated[tuple[int, ...], shown("N ...", "none")] = ()
    """Batch sizes to compile for the default options before the server listens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
@call_options
class ServeOptions(CallOptions, ServerOptions):
    """Serve a model to OpenAI's clients: chat completions about images, in batches.

    Options of the choice and of drawing are those of requests that do not say."""

    keep: Annotated[
        str,
        shown(
            "COUNT|RATIO|full",
            None,
            "Visual tokens to keep where a request does not say.",
        ),
    ] = "full"  # type: ignore[assignment]
    method: Annotated[str, shown("NAME|FILE.py:NAME", None)] = "resprune"
    """How the kept tokens are chosen; requests may name any method but no file."""
    method_settings: Annotated[tuple[str, ...], shown("NAME=VALUE [NAME=VALUE ...]")] = ()
    """Settings of that method."""
    chat_template: Annotated[
        bool,
        tyro.conf.FlagCreatePairsOff,
        tyro.conf.arg(
            help="A request's text is the whole prompt with its image placeholders; conversations"
            " are refused."
        ),
    ] = True
    rng_seed: Annotated[int | None, shown("N", "another for each request")] = None  # type: ignore[assignment]
    """Seed of requests that draw and give none."""
    dtype: WeightsDType = None
    precision: ProductPrecision = None
    clip: ClipCheckpoint = None
    quiet: bool = False
    """Do not say where the server listens."""

    def __post_init__(self) -> None:
        """Nothing yet: `check` names the options as they are written on the command line."""

    def call(self) -> CallOptions:
        """The options of requests that say nothing.

        Raises:
            CallError: one that cannot work.
        """
        names = [option.name for option in dataclasses.fields(CallOptions)]
        own = {name: getattr(self, name) for name in names}
        keep = parse_keep(self.keep)
        if self.method == "none" and keep is not None:
            raise CallError("--keep has no meaning with --method none, which keeps every token")
        return CallOptions(**{**own, "keep": keep, "rng_seed": self.rng_seed or 0})


_NUMBERS = (
    ("port", 0, 65535), ("max_batch", 1, 4096), ("wait_ms", 0, 60_000), ("max_waiting", 1, 10**6),
    ("max_body_mb", 1e-3, 10**5), ("max_memory_mb", 1e-3, 10**7), ("max_images", 1, 1024),
    ("max_pixels", 1, 2**27), ("timeout", 1e-3, 10**6), ("body_timeout", 1e-3, 10**5),
    ("image_cache_mb", 0, 10**7), ("stream_tokens", 1, 10**6),
)  # fmt: skip


def check(options: ServeOptions) -> tuple[str, ...]:
    """Refuse what can be seen to be wrong before a model is loaded.

    Returns:
        The keys that clients may have.

    Raises:
        CallError: one line that names the option.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise CallError(
            f"resprune serve needs {', '.join(missing)}: pip install 'resprune-jax[serve]'"
        )
    for name, low, high in _NUMBERS:
        check_number(f"--{name.replace('_', '-')}", getattr(options, name), low, high)
    if options.rng_seed is not None:
        check_number("--rng-seed", options.rng_seed, 0, 2**32 - 1)
    for size in options.warm_up:
        check_number("--warm-up", size, 1, options.max_batch)
    if options.template is not None:
        check_file(options.template, "--chat-template")
    if options.image_folder is not None and not options.image_folder.is_dir():
        raise CallError(f"--image-folder {options.image_folder} is not a folder")
    keys = read_keys(options.api_key_file)
    if not keys and not is_loopback(options.host):
        raise CallError(
            f"--host {options.host} lets other machines ask: set {KEY}, or give --api-key-file"
            " (or listen on 127.0.0.1 behind a proxy that checks who asks)"
        )
    return keys


def read_keys(path: Path | None) -> tuple[str, ...]:
    """The keys of a file, or of the environment.

    Raises:
        CallError: a file without one, or a key that no header can hold.
    """
    if path is None:
        found = [os.environ[KEY]] if os.environ.get(KEY) else []
    else:
        check_file(path, "--api-key-file")
        text = path.read_text(encoding="utf-8", errors="replace")
        found = [line.strip() for line in text.splitlines() if line.strip()]
        if not found:
            raise CallError(f"--api-key-file {path} holds no key: write one a line")
    for key in found:
        if not key.isascii() or not key.isprintable() or " " in key:
            raise CallError("an API key holds printable ASCII characters, and no blank")
    return tuple(found)


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(options: ServeOptions) -> int:
    """Carry out `resprune serve`.

    Args:
        options: the command's options.

    Returns:
        0: it was told to end, and every request that it had accepted was answered.

    Raises:
        CallError: an option that cannot work.
        RunError: a checkpoint that is broken.
    """
    keys = check(options)
    call = options.call()
    from resprune_jax.experiments.serve.service import Service
    from resprune_jax.experiments.serve.telling.errors import RequestError
    from resprune_jax.experiments.serve.web.server import listen

    with listen(options.host, options.port) as socket:
        lvlm = load_asked(options)
        service = Service(lvlm, served_name(options), options, call, keys)
        try:
            service.prepare()
        except RequestError as error:
            raise RunError(f"--warm-up: {error.message}") from None
        host, port = socket.getsockname()[:2]
        if not options.quiet:
            where = f"[{host}]" if ":" in host else host
            print(f"resprune: serving {service.name} at http://{where}:{port}/v1",
                  file=sys.stderr, flush=True)  # fmt: skip
        return service.serve(socket)


def served_name(options: ServerOptions) -> str:
    """What requests call the model."""
    if options.name is not None:
        return options.name
    name = model_name(options.model)
    return Path(name).name if Path(name).is_absolute() else name


def megabytes(count: float) -> int:
    """As bytes."""
    return math.ceil(count * 1e6)
