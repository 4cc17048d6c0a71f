"""Hugging Face checkpoints to (sharded) parameters, strict both ways.

The model's own parameters say what is read: each one names its tensor, layout, dtype and sharding,
and every device gets just its part, straight from the file. Nothing goes through torch, and no
second copy of the model is ever in memory. Everything that does not fit is found before the first
weight is read and named in one `CheckpointError`.
"""

import contextlib
import dataclasses
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike
from ml_dtypes import finfo

from resprune_jax.errors import CallError, say_once, shown
from resprune_jax.models.checkpoint.formats import CheckpointFormat, ModelConfig
from resprune_jax.models.checkpoint.names import Source, fold_names, listed, name_of
from resprune_jax.models.checkpoint.safetensors_files import (
    DTYPES,
    CheckpointError,
    TensorInfo,
    WeightFiles,
)
from resprune_jax.models.checkpoint.sharding import (
    DEFAULT_RULES,
    ShardingRules,
    check_mesh,
    logical_axes,
)
from resprune_jax.models.checkpoint.survey import HEAD, TABLE, same

__all__ = ["CheckpointError", "load_parameters", "resolve_dtype"]

_PEFT = re.compile(r"^base_model\.model\.|\.lora_[AB]\.|\.lora_embedding_|\.base_layer\.")
_logger = logging.getLogger("resprune_jax")
_COMPUTE_DTYPES = {name: DTYPES[code] for name, code in
                   (("float32", "F32"), ("bfloat16", "BF16"), ("float16", "F16"))}  # fmt: skip


def resolve_dtype(
    requested: DTypeLike | None,
    directory: str | Path,
    config: Mapping[str, Any],
    *,
    platform: str | None = None,
) -> np.dtype:
    """Choose the dtype of parameters and activations.

    Args:
        requested: "float32", "bfloat16", "float16" or such a dtype; None for the checkpoint's own.
        directory: the checkpoint's folder.
        config: its parsed `config.json`; where that names no dtype, the weights' own decides.
        platform: "cpu", "gpu" or "tpu"; default: JAX's.

    Returns:
        The dtype. A checkpoint's float16 becomes bfloat16 on CPU and TPU, where float16 is emulated
        or lacks range, which is said once; a float16 that was asked for stays.

    Raises:
        CallError: a dtype that is not one of the three.
        CheckpointError: the weights' dtype was needed and no weights could be read.
    """
    if requested is not None:
        return _compute_dtype(requested, "dtype")
    text = config.get("text_config") or {}
    named = [
        value
        for section in (config, text if isinstance(text, Mapping) else {})
        for key in ("dtype", "torch_dtype")
        if (value := section.get(key)) is not None
    ]
    if named:
        own = _compute_dtype(named[0], f"the dtype in {Path(directory) / 'config.json'}")
    else:
        sizes: Counter[str] = Counter()
        for tensor in WeightFiles(Path(directory)).tensors:
            if tensor.dtype in DTYPES:
                sizes[tensor.dtype] += tensor.nbytes
        largest = sizes.most_common(1)[0][0] if sizes else "F32"
        own = DTYPES["F32" if largest == "F64" else largest]
    platform = jax.default_backend() if platform is None else platform
    if own == np.float16 and platform in ("cpu", "tpu"):
        say_once(
            "float16 to bfloat16",
            f"the checkpoint's float16 weights are loaded as bfloat16 on {platform}; "
            "pass dtype to choose another",
        )
        return DTYPES["BF16"]
    return own


def load_parameters(
    directory: str | Path,
    abstract_module: Any,
    *,
    dtype: DTypeLike | None,
    mesh: Mesh | None = None,
    rules: ShardingRules = DEFAULT_RULES,
) -> nnx.State:
    """Read a checkpoint's weights straight to device arrays.

    Args:
        directory: a folder with `model.safetensors`, or `model.safetensors.index.json` and the
            files it names; keys in any dialect of the model's family.
        abstract_module: the model from `nnx.eval_shape`; attribute names are canonical key parts,
            and the type of its `config` says which family it is.
        dtype: dtype of the parameters; None for the dtypes that the abstract module has.
        mesh: devices to shard over, of any axis types (they are made Auto); None for the default
            device. Gated MLPs are divided as far as the module's configuration says
            (`sharding.divide_mlps`).
        rules: how logical axes lie on the mesh.

    Returns:
        The state, as `nnx.split(abstract_module)` has it, for `nnx.merge` with its graphdef.

    Raises:
        CallError: a dtype or a mesh that cannot work.
        CheckpointError: everything that is missing, unknown, duplicate, misshapen, of a dtype that
            is not a float, truncated or inconsistent, all at once.
    """
    directory = Path(directory)
    config: ModelConfig = abstract_module.config
    form = config.form
    _, state = nnx.split(abstract_module)
    targets = [_target(path, leaf, form) for path, leaf in nnx.to_flat_state(state)]
    cast = None if dtype is None else _compute_dtype(dtype, "dtype")
    if mesh is not None:
        check_mesh(mesh, rules)
    files = WeightFiles(directory)
    found = _match(files, targets, form, config)
    arrays = {}
    # Largest first: the transient copies of a tensor weigh least while little is loaded.
    for target in sorted(targets, key=lambda t: -int(np.prod(t.leaf.shape))):
        stored = [(found[source.key], source) for source in target.sources]
        reader = _Reader(files, stored, target.leaf.shape, cast or target.leaf.dtype)
        if mesh is None:
            array = jax.device_put(reader())
        else:
            sharding = _sharding(target.path, target.leaf.shape, form, config, mesh, rules)
            array = jax.make_array_from_callback(
                target.leaf.shape, sharding, reader, dtype=reader.dtype
            )
        # Transfers are asynchronous: without waiting, host copies of many tensors pile up.
        arrays[target.path] = jax.block_until_ready(array)
    _logger.info("loaded %d tensors from %s", len(arrays), directory)
    return nnx.from_flat_state([(t.path, t.leaf.replace(arrays[t.path])) for t in targets])


def abstract_parameters(
    abstract_module: Any, mesh: Mesh, rules: ShardingRules = DEFAULT_RULES
) -> nnx.State:
    """The parameters as shapes, laid on a mesh as `load_parameters` lays them.

    Args:
        abstract_module: the model from `nnx.eval_shape`.
        mesh: devices to shard over; they need not exist.
        rules: how logical axes lie on the mesh.

    Returns:
        The state; its leaves are `jax.ShapeDtypeStruct` with shardings.
    """
    config: ModelConfig = abstract_module.config
    form = config.form
    leaves = []
    for path, leaf in nnx.to_flat_state(nnx.split(abstract_module)[1]):
        where = _sharding(path, leaf.shape, form, config, mesh, rules)
        shape = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
        leaves.append((path, leaf.replace(shape)))
    return nnx.from_flat_state(leaves)


def _sharding(
    path: tuple[Any, ...],
    shape: tuple[int, ...],
    form: CheckpointFormat,
    config: ModelConfig,
    mesh: Mesh,
    rules: ShardingRules,
) -> NamedSharding:
    """Where a parameter lies on a mesh."""
    units = _head_units(path, form, config)
    return rules.sharding(logical_axes(path, len(shape)), shape, mesh, units)


@dataclasses.dataclass(frozen=True)
class _Target:
    """A parameter to fill."""

    path: tuple[str | int, ...]
    leaf: Any  # the nnx variable that holds a ShapeDtypeStruct
    sources: tuple[Source, ...]


def _target(path: Sequence[Any], leaf: Any, form: CheckpointFormat) -> _Target:
    return _Target(tuple(path), leaf, form.keys.sources_of(path, leaf.shape))


class _Reader:
    """Reads one parameter in parts; devices that hold the same part share one reading."""

    def __init__(
        self,
        files: WeightFiles,
        stored: Sequence[tuple[TensorInfo, Source]],
        shape: tuple[int, ...],
        dtype: np.dtype,
    ) -> None:
        self.files, self.stored, self.shape = files, stored, shape
        self.dtype = np.dtype(dtype)
        self.parts: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def __call__(self, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """The part of the parameter at `index` (None: all of it), in its module's layout."""
        index = (slice(None),) * len(self.shape) if index is None else index
        bounds = [part.indices(size)[:2] for part, size in zip(index, self.shape, strict=True)]
        key = tuple(bounds)
        if key not in self.parts:
            self.parts[key] = self._read([slice(*bound) for bound in bounds])
        return self.parts[key]

    def _read(self, index: list[slice]) -> np.ndarray:
        tensor, source = self.stored[0]
        if source.layout == "copy":
            return self._cast(tensor, self.files.read(tensor, tuple(index)))
        if source.layout == "transpose":
            return self._cast(tensor, self.files.read(tensor, tuple(index[::-1])).T)
        if source.layout == "rows":
            return self._read_joined(index)
        rows, columns = index
        whole = tuple(slice(0, size) for size in tensor.shape[1:])
        patches = self.files.read(tensor, (columns, *whole))
        return self._cast(tensor, patches.reshape(len(patches), -1).T[rows])

    def _read_joined(self, index: list[slice]) -> np.ndarray:
        """One layer after the other into its place: never are all of them in memory twice."""
        groups, asked, within, *rest = index
        filled = np.empty([part.stop - part.start for part in index], self.dtype)
        for tensor, source in self.stored:
            begin = max(asked.start, source.start)
            end = min(asked.stop, source.start + source.shape[1])
            if begin >= end:
                continue
            own = slice(begin - source.start, end - source.start)
            count, width = source.shape[1:3]
            if source.shape[:2] == (1, 1):
                rows = self.files.read(tensor, (within, *rest))[None, None]
            else:
                size = count * width
                lines = slice(groups.start * size, groups.stop * size)
                rows = self.files.read(tensor, (lines, *rest))
                rows = rows.reshape(-1, count, width, *rows.shape[1:])[:, own, within]
            place = slice(begin - asked.start, end - asked.start)
            filled[:, place] = self._cast(tensor, rows)
        return filled

    def _cast(self, tensor: TensorInfo, x: np.ndarray) -> np.ndarray:
        if x.dtype == self.dtype:
            return x
        with np.errstate(over="ignore"):
            y = x.astype(self.dtype)
        if finfo(self.dtype).max >= finfo(x.dtype).max:
            return y
        lost = ~np.isfinite(y)
        if lost.any() and np.isfinite(x[lost]).any():
            raise CheckpointError(
                self.files.directory,
                [f"{tensor.key} has values beyond the range of {self.dtype.name}: load it as "
                 "bfloat16 or float32"],
            )  # fmt: skip
        return y


def _match(
    files: WeightFiles, targets: list[_Target], form: CheckpointFormat, config: ModelConfig
) -> dict[str, TensorInfo]:
    """Pair parameters with tensors; raises with everything that does not pair."""
    keys = form.keys
    sources = {source.key: source for target in targets for source in target.sources}
    num_blocks = config.vision.num_layers
    found: dict[str, list[TensorInfo]] = {}
    unknown, odd = [], []
    for tensor in files.tensors:
        key = keys.canonical_key(tensor.key)
        # A head beside a tied embedding table has no parameter, and must then equal the table.
        tied_head = key == HEAD and TABLE in sources
        if key in sources or tied_head:
            found.setdefault(key, []).append(tensor)
            if tensor.dtype not in DTYPES:
                odd.append(f"{tensor.key} ({tensor.dtype})")
        elif not keys.is_unused(key, sources, num_blocks):
            unknown.append(tensor.key)
    if files.problems and not files.tensors:  # nothing could be read, so all would be missing
        raise CheckpointError(files.directory, files.problems)
    problems = list(files.problems)
    lost = {keys.canonical_key(key) for key in files.lost}
    missing = [key for key in sources if key not in found and key not in lost]
    if missing:
        problems.append(f"{len(missing)} missing: {fold_names(missing)}")
    if unknown:
        problems.append(f"{len(unknown)} unknown: {fold_names(unknown)}")
        if peft := [key for key in unknown if _PEFT.search(key)]:
            problems.insert(
                0,
                f"{len(peft)} names are PEFT's, as {name_of(peft[0])}: the adapter was saved with "
                "the model and is not merged; load it where peft is installed, then "
                "merge_and_unload and save_pretrained",
            )
    for key, tensors in sorted(found.items()):
        if len(tensors) > 1:
            places = listed([f"{tensor.key} in {tensor.file}" for tensor in tensors])
            problems.append(f"duplicate: {name_of(key)} (as {places})")
    for key, tensors in sorted(found.items()):
        for tensor in tensors:
            if key in sources and not sources[key].fits(tensor.shape):
                problems.append(
                    f"misshapen: {name_of(tensor.key)} is {shown(tensor.shape)}, expected "
                    f"{sources[key].expected}"
                )
    if odd:
        problems.append(f"not plain floats (quantised?): {listed(odd)}")
    if problems:
        raise CheckpointError(files.directory, problems)
    if HEAD in found and HEAD not in sources:
        _check_tied(files, found[HEAD][0], found[TABLE][0])
    return {key: tensors[0] for key, tensors in found.items()}


def _check_tied(files: WeightFiles, head: TensorInfo, table: TensorInfo) -> None:
    """Raise unless the stored head is the embedding table that the model uses in its place."""
    if head.shape != table.shape or not same(files, head, table):
        raise CheckpointError(
            files.directory,
            [f"tied: {head.key} differs from {table.key}, though config.json ties them "
             "(tie_word_embeddings): set it to false, or remove the head"],
        )  # fmt: skip


def _head_units(
    path: tuple[str | int, ...], form: CheckpointFormat, config: ModelConfig
) -> dict[str, int]:
    """How many heads a parameter's head axes hold, so that no head is split between devices."""
    if path[0] == form.vision:
        return {"heads": config.vision.num_heads, "kv_heads": config.vision.num_heads}
    return {"heads": config.text.num_heads, "kv_heads": config.text.num_kv_heads}


def _compute_dtype(value: Any, what: str) -> np.dtype:
    """One of the three dtypes that models run in, from its name or itself."""
    name = value if isinstance(value, str) else None
    if name is None:
        name = shown(value)
        if isinstance(value, type | np.dtype):  # NumPy takes anything that has a dtype
            with contextlib.suppress(Exception):  # of many kinds
                name = np.dtype(value).name
    if name not in _COMPUTE_DTYPES:
        raise CallError(f"{what} is {shown(name)}, expected one of {', '.join(_COMPUTE_DTYPES)}")
    return _COMPUTE_DTYPES[name]
