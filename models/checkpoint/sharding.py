"""Logical axes of parameters, caches and batches, and the rules that lay them on a device mesh.

A parameter's dimensions carry logical names (`vocab`, `heads`, `mlp`, `embed`); `ShardingRules`
says which mesh axes each name is split over. The model code itself never mentions a mesh:
parameters and inputs arrive sharded and XLA propagates the rest, so every mesh is used with Auto
axis types.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from resprune_jax.errors import CallError

LogicalAxes = tuple[str | None, ...]

# Kernels are (in, out). Megatron's layout: the first linear of a pair is split by its outputs and
# the second by its inputs, so that one all-reduce a pair is enough.
_KERNEL_AXES: dict[str, tuple[str | None, str | None]] = {
    "patch_embedding": (None, "embed"),
    "q_proj": ("embed", "heads"),
    "k_proj": ("embed", "kv_heads"),
    "v_proj": ("embed", "kv_heads"),
    "o_proj": ("heads", "embed"),
    "out_proj": ("heads", "embed"),
    "gate_proj": ("embed", "mlp"),
    "up_proj": ("embed", "mlp"),
    "down_proj": ("mlp", "embed"),
    "fc1": ("embed", "mlp"),
    "fc2": ("mlp", "embed"),
    "linear_1": ("embed", "mlp"),
    "linear_2": ("mlp", "embed"),
    "lm_head": ("embed", "vocab"),
    # Qwen2.5-VL's tower. Queries, keys and values lie one behind the other in one kernel: equal
    # parts of it would not be whole heads of each, so it is kept whole and its outputs are not.
    "qkv": ("embed", None),
    "attn.proj": ("heads", "embed"),
    "patch_embed.proj": (None, "embed"),
    "mlp.0": ("embed", "mlp"),
    "mlp.2": ("mlp", "embed"),
}
# A `JoinedLinear`: groups, layers, rows of each, inputs. Whole groups lie on a device.
_JOINED_AXES: dict[str, tuple[str | None, ...]] = {
    "qkv_proj": ("kv_heads", None, None, "embed"),
    "gate_up_proj": ("mlp", None, None, "embed"),
}
_TABLE_AXES: dict[str, tuple[str | None, str | None]] = {
    "embed_tokens": ("vocab", "embed"),
    "position_embedding": (None, "embed"),
}


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Which mesh axes each logical axis is split over.

    A value is a mesh axis name, a tuple of them, or None (never split). Only the axes that the mesh
    has count, and only as far as their product divides the dimension; what is left is replicated.

    Attributes:
        vocab: rows of the embedding table, columns of the language-model head.
        heads: query heads (the outputs of q_proj, the inputs of o_proj and out_proj).
        kv_heads: key and value heads, of parameters and of the KV cache.
        mlp: hidden units of the feed-forward layers and of the projector.
        embed: the residual stream's dimension, of parameters only (fully sharded data parallelism).
        batch: rows of a batch, of inputs and of the KV cache.
    """

    vocab: str | tuple[str, ...] | None = ("model", "tensor")
    heads: str | tuple[str, ...] | None = ("model", "tensor")
    kv_heads: str | tuple[str, ...] | None = ("model", "tensor")
    mlp: str | tuple[str, ...] | None = ("model", "tensor")
    embed: str | tuple[str, ...] | None = ("fsdp",)
    batch: str | tuple[str, ...] | None = ("data", "fsdp")

    def mesh_axes(self, logical: str | None) -> tuple[str, ...]:
        """Return the mesh axes that the rules name for one logical axis (none for None)."""
        value = None if logical is None else getattr(self, logical)
        if value is None:
            return ()
        return (value,) if isinstance(value, str) else tuple(value)

    def spec(
        self,
        axes: Sequence[str | None],
        shape: Sequence[int],
        mesh: Mesh,
        units: Mapping[str, int] | None = None,
    ) -> PartitionSpec:
        """Return the partition of one array.

        Args:
            axes: the logical axis of each dimension; None for a dimension that is never split.
            shape: the array's shape, as many entries as `axes`.
            mesh: the device mesh.
            units: how many indivisible units a logical axis holds where that is not the dimension
                itself: `{"heads": 32}` keeps whole heads together in a (d, 32 * head_dim) kernel.

        Raises:
            CallError: the rules split two dimensions of this array over the same mesh axis.
        """
        entries: list[str | tuple[str, ...] | None] = []
        used: set[str] = set()
        for logical, size in zip(axes, shape, strict=True):
            wanted = [axis for axis in self.mesh_axes(logical) if axis in mesh.shape]
            clash = used.intersection(wanted)
            if clash:
                raise CallError(
                    f"sharding rules split two dimensions of one array {tuple(axes)} over the mesh "
                    f"axis {sorted(clash)[0]!r}: give {logical!r} another axis, or None"
                )
            used.update(wanted)
            count = (units or {}).get(logical or "", size)
            while wanted and count % int(np.prod([mesh.shape[axis] for axis in wanted])):
                wanted.pop()
            entries.append(None if not wanted else wanted[0] if len(wanted) == 1 else tuple(wanted))
        while entries and entries[-1] is None:
            entries.pop()
        return PartitionSpec(*entries)

    def sharding(
        self,
        axes: Sequence[str | None],
        shape: Sequence[int],
        mesh: Mesh,
        units: Mapping[str, int] | None = None,
    ) -> NamedSharding:
        """Return `spec` on the mesh, with Auto axis types. Arguments as for `spec`."""
        return NamedSharding(auto_mesh(mesh), self.spec(axes, shape, mesh, units))


DEFAULT_RULES = ShardingRules()


def auto_mesh(mesh: Mesh) -> Mesh:
    """Return the same mesh with Auto axis types.

    `jax.make_mesh` makes Explicit axes by default, under which an embedding lookup on a sharded
    table or a contraction over a sharded axis is an error unless the code names its output
    sharding.
    """
    if all(kind == AxisType.Auto for kind in mesh.axis_types):
        return mesh
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def check_mesh(mesh: Mesh, rules: ShardingRules = DEFAULT_RULES) -> None:
    """Refuse a mesh of several devices of which the rules use no axis at all.

    Raises:
        CallError: every parameter and every batch would be copied to all devices of the mesh.
    """
    named = {axis for field in dataclasses.fields(rules) for axis in rules.mesh_axes(field.name)}
    if mesh.size > 1 and not named.intersection(mesh.axis_names):
        raise CallError(
            f"the mesh has the axes {tuple(mesh.axis_names)}, none of which the sharding rules use "
            f"({', '.join(sorted(named)) or 'no axis at all'}): rename a mesh axis or pass rules="
        )


def logical_axes(path: Sequence[str | int], ndim: int) -> LogicalAxes:
    """Return the logical axes of a parameter, from its path in the module.

    Vectors of the residual stream (norms, the biases of second linears) stay whole: they are small.

    Args:
        path: attribute names and list indices, as in `nnx.to_flat_state`.
        ndim: number of dimensions of the parameter.
    """
    owner, leaf = (str(path[-2]) if len(path) > 1 else ""), str(path[-1])
    # Names that mean one thing in one place and another elsewhere count with their owner's.
    if len(path) > 2 and f"{path[-3]}.{owner}" in _KERNEL_AXES:
        owner = f"{path[-3]}.{owner}"
    if owner in _JOINED_AXES:
        return _JOINED_AXES[owner][:ndim]
    if leaf == "kernel" and owner in _KERNEL_AXES:
        return _KERNEL_AXES[owner]
    if leaf == "bias" and owner in _KERNEL_AXES:
        last = _KERNEL_AXES[owner][1]
        return (None if last == "embed" else last,)
    if leaf == "embedding" and owner in _TABLE_AXES:
        return _TABLE_AXES[owner]
    return (None,) * ndim


def divide_mlps(config: Any, mesh: Mesh | None, rules: ShardingRules = DEFAULT_RULES) -> Any:
    """The configuration for a mesh: gated MLPs in as many groups as devices share them.

    Args:
        config: of a model, whose `text`, and `vision` in some families, count `mlp_groups`.
        mesh: the device mesh; None for one device.
        rules: the rules in force.
    """
    if mesh is None:
        return config
    parts = {}
    for name in ("text", "vision"):
        part = getattr(config, name)
        if hasattr(part, "mlp_groups"):
            inner = part.intermediate_size
            (own,) = rules.sharding(("mlp",), (inner,), mesh).shard_shape((inner,))
            parts[name] = dataclasses.replace(part, mlp_groups=inner // own)
    return dataclasses.replace(config, **parts)


def batch_sharding(
    mesh: Mesh, shape: Sequence[int], rules: ShardingRules = DEFAULT_RULES
) -> NamedSharding:
    """Return the sharding of an input whose first dimension is the batch: ids, pixels, masks.

    Args:
        mesh: the device mesh.
        shape: the array's shape, (B, ...).
        rules: the rules in force.
    """
    return rules.sharding(("batch",) + (None,) * (len(shape) - 1), shape, mesh)
