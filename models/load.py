"""`load_model`: from a checkpoint's folder or Hub id to an `LVLM` that answers."""

import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import jax
from flax import nnx
from jax.typing import DTypeLike

from resprune_jax.choices import Precision
from resprune_jax.errors import CallError, ResPruneError, shown
from resprune_jax.models.api import LVLM
from resprune_jax.models.checkpoint.hub import resolve_checkpoint
from resprune_jax.models.checkpoint.reading import load_parameters, resolve_dtype
from resprune_jax.models.checkpoint.sharding import auto_mesh, divide_mlps
from resprune_jax.models.families.registry import (
    checkpoint_config,
    make_family,
    module_class,
    read_config,
    read_model_config,
)
from resprune_jax.models.prompts.chat import PromptEncoder
from resprune_jax.models.prompts.generation_file import read_generation_settings
from resprune_jax.models.running.clip import Clip
from resprune_jax.models.running.precision import resolve_precision

logger = logging.getLogger("resprune_jax")

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def short_errors(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let an error that a user can meet come alone, without the frames and causes behind it.

    They say nothing that its line does not; at the debug level of the logger "resprune_jax" they
    are logged.
    """

    @functools.wraps(function)
    def call(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        try:
            return function(*args, **options)
        except ResPruneError as error:
            logger.debug("%s failed", function.__name__, exc_info=True)
            short = error.with_traceback(None)
        raise short from None

    return call


def check_arguments(
    path_or_hub_id: object, revision: object, token: object, mesh: object, clip: object = None
) -> None:
    """Refuse what is no path, name or mesh before anything is looked for.

    Raises:
        CallError: naming what was given and what was expected.
    """
    if not isinstance(path_or_hub_id, str | os.PathLike):
        raise CallError(
            "the model is a folder, a Hugging Face Hub id, or pocket for the one that comes with"
            f" this package; got {shown(path_or_hub_id)}"
        )
    if clip is not None and not (isinstance(clip, str | os.PathLike) and str(clip).strip()):
        raise CallError(
            "clip is a folder or a Hub id such as openai/clip-vit-large-patch14-336, or None; got"
            f" {shown(clip)}"
        )
    for name, value in (("revision", revision), ("token", token)):
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise CallError(f"{name} is a text or None, got {shown(value)}")
    if mesh is not None and not isinstance(mesh, jax.sharding.Mesh):
        raise CallError(
            f'mesh is a jax.sharding.Mesh, jax.make_mesh((2, 4), ("data", "model")), got'
            f" {shown(mesh)}"
        )


@short_errors
def load_model(
    path_or_hub_id: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    dtype: DTypeLike | None = None,
    mesh: jax.sharding.Mesh | None = None,
    chat_template: str | Path | None = None,
    clip: str | Path | None = None,
    precision: Precision | None = None,
) -> LVLM:
    """Load a checkpoint of a supported family (Hugging Face format; docs/reference/families.md).

    Args:
        path_or_hub_id: a folder, a Hub id such as "llava-hf/llava-1.5-7b-hf", or "pocket" for the
            small model that comes with the package (./pocket is a folder of that name).
        revision: branch, tag or commit of a Hub id.
        token: access token of a gated Hub id; default the one that is logged in.
        dtype: float32, bfloat16 or float16; default the checkpoint's own (float16 becomes bfloat16
            on TPU and CPU, which is said once).
        mesh: shard the parameters over these devices (axes "data" and "model", `sharding.py`).
        chat_template: a Jinja chat template, or the `Path` of its file, in place of the
            checkpoint's: for checkpoints that came without theirs.
        clip: the CLIP that the model's vision tower is from, such as
            "openai/clip-vit-large-patch14-336", for methods that read its texts (`trim`,
            `cdpruner`): a folder or a Hub id, with safetensors. Its vision tower is not read.
        precision: what the products of float32 parameters are computed in: "float32" (default, on
            every backend), or the faster "tensorfloat32" of a GPU or "bfloat16" of a TPU, which
            round the operands. Nothing for parameters of 16 bits.

    Returns:
        The model, its parameters on the devices.

    Raises:
        CallError: no such folder or id, an architecture that is not supported, or a
            `generation_config.json` that asks for what is not done here.
        RunError: a checkpoint that is broken; one error names everything that is wrong with it.
    """
    check_arguments(path_or_hub_id, revision, token, mesh, clip)
    parts: list[Any] = []

    def judge(folder: Path) -> None:
        """The cheap parts first: what is wrong with them shows before gigabytes are fetched."""
        config = read_model_config(read_config(folder))
        encoder = PromptEncoder.from_checkpoint(folder, config, chat_template=chat_template)
        settings = read_generation_settings(folder, config.text.vocab_size, read_config(folder))
        family = make_family(config, folder)
        own = None if clip is None else Clip.from_checkpoint(clip, family, token=token)
        parts[:] = family, encoder, settings, own

    folder = resolve_checkpoint(path_or_hub_id, revision=revision, token=token, judge=judge)
    family, encoder, settings, own = parts
    raw, config = checkpoint_config(folder)
    chosen = resolve_dtype(dtype, folder, raw)
    precision = resolve_precision(precision, chosen)
    mesh = None if mesh is None else auto_mesh(mesh)
    family.config = config = divide_mlps(config, mesh)
    made = module_class(config)
    abstract = nnx.eval_shape(lambda: made(config, rngs=nnx.Rngs(0), dtype=chosen))
    state = load_parameters(folder, abstract, dtype=chosen, mesh=mesh)
    return LVLM(
        family, state, path=folder, encoder=encoder, settings=settings, dtype=chosen, mesh=mesh,
        clip=own, precision=precision,
    )  # fmt: skip
