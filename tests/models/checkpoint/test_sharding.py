"""Which mesh axes parameters, caches and batches get, and loading onto 8 devices."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

from resprune_jax.errors import CallError
from resprune_jax.models.checkpoint.sharding import (
    DEFAULT_RULES,
    ShardingRules,
    auto_mesh,
    batch_sharding,
    check_mesh,
    logical_axes,
)
from resprune_jax.models.families.llava.config import LlavaConfig
from resprune_jax.models.families.llava.module import Llava

P = PartitionSpec


def mesh_of(**axes: int) -> Any:
    """A mesh without devices: rules read only its axis names and sizes."""
    return AbstractMesh(tuple(axes.values()), tuple(axes))


def test_every_matrix_has_logical_axes() -> None:
    config = LlavaConfig.from_hf({"vision_config": {"num_hidden_layers": 2}, "text_config": {}})
    model = nnx.eval_shape(lambda: Llava(config, rngs=nnx.Rngs(0)))
    leaves = nnx.to_flat_state(nnx.split(model)[1])
    counts = {"matrix": 0, "split vector": 0, "whole vector": 0}
    for path, leaf in leaves:
        axes = logical_axes(path, len(leaf.shape))
        assert len(axes) == len(leaf.shape), path
        assert set(axes) <= {None, "vocab", "heads", "kv_heads", "mlp", "embed"}
        if len(axes) > 1:
            assert any(axes), path
            counts["matrix"] += 1
        else:
            counts["split vector" if any(axes) else "whole vector"] += 1
    assert all(counts.values()), counts
    print(counts)


@pytest.mark.parametrize(
    ("axes", "shape", "mesh", "spec"),
    [
        (("embed", "heads"), (64, 96), {"data": 2, "model": 4}, P(None, "model")),
        (("heads", "embed"), (96, 64), {"tensor": 8}, P("tensor")),
        (("vocab", "embed"), (400, 64), {"fsdp": 2, "model": 4}, P("model", "fsdp")),
        (("vocab", "embed"), (399, 64), {"fsdp": 2, "model": 4}, P(None, "fsdp")),
        (("mlp", "embed"), (112, 64), {"model": 4, "tensor": 4}, P(("model", "tensor"))),
        # The product 32 does not divide, its first axis does.
        (("mlp", "embed"), (112, 64), {"model": 8, "tensor": 4}, P("model")),
        ((None,), (64,), {"model": 8}, P()),
    ],
)
def test_axes_are_split_as_far_as_they_divide(
    axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: dict[str, int], spec: P
) -> None:
    assert DEFAULT_RULES.spec(axes, shape, mesh_of(**mesh)) == spec


def test_heads_are_never_split() -> None:
    mesh, units = mesh_of(model=8), {"heads": 32, "kv_heads": 4}
    spec = DEFAULT_RULES.spec
    assert spec(("embed", "heads"), (4096, 4096), mesh, units) == P(None, "model")
    # 4 heads of 128 columns divide by 8 as columns, not as heads.
    assert spec(("embed", "kv_heads"), (4096, 512), mesh, units) == P()
    assert spec(("embed", "kv_heads"), (4096, 512), mesh_of(model=4), units) == P(None, "model")


def test_rules_can_be_changed_and_may_not_collide() -> None:
    rules = ShardingRules(heads="tp", embed=None)
    assert rules.spec(("embed", "heads"), (64, 96), mesh_of(tp=2, fsdp=2)) == P(None, "tp")
    with pytest.raises(CallError, match=r"two dimensions .* over the mesh axis 'model'"):
        ShardingRules(embed="model").spec(("embed", "mlp"), (64, 96), mesh_of(model=2))


def test_mesh_is_made_auto_and_checked() -> None:
    mesh = jax.make_mesh((1,), ("model",))
    made = auto_mesh(mesh)
    assert made.axis_types == (AxisType.Auto,)
    assert made.axis_names == mesh.axis_names
    assert list(made.devices) == list(mesh.devices)
    assert auto_mesh(made) is made
    check_mesh(mesh_of(model=8))
    check_mesh(mesh_of(data=8))
    with pytest.raises(CallError, match=r"axes \('x',\), none of which"):
        check_mesh(mesh_of(x=8))


def test_batches() -> None:
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    assert batch_sharding(mesh, (4, 128)).spec == P("data")
    assert batch_sharding(mesh, (4,)).mesh.axis_types == (AxisType.Auto, AxisType.Auto)


def test_loading_onto_eight_devices(checkpoint: Path) -> None:
    script = Path(__file__).with_name("eight_devices.py")
    flags = os.environ.get("XLA_FLAGS", "")
    done = subprocess.run(
        [sys.executable, str(script), str(checkpoint)],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=8",
            "PYTHONPATH": str(Path(__file__).parents[3]),
        },
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert "('x',), none of which the sharding rules use" in found.pop("refused")
    assert found.keys() == {"tensor", "mixed", "fsdp", "batch"}
    for name, report in found.items():
        assert report["unequal"] == [], name
        assert report["auto"], name
        assert report["logits"] <= 1e-5, name
        # Every byte of a part is read once, whatever the number of devices that hold it.
        assert report["read"] == report["stored"], name
    specs = {name: report["specs"] for name, report in found.items()}
    # 8 devices: the 4 heads do not divide, the 112 units of the MLP and the vocabulary do.
    assert specs["tensor"]["qkv_proj"] == []
    assert specs["tensor"]["gate_up_proj"] == ["model"]
    assert specs["tensor"]["down_proj"] == ["model"]
    assert specs["tensor"]["embed_tokens"] == ["model"]
    assert found["tensor"]["largest_part"]["gate_proj"] == 64 * 112 * 4 // 8
    assert specs["mixed"]["qkv_proj"] == ["model"]
    assert found["mixed"]["largest_part"]["q_proj"] == 64 * 64 * 4 // 4
    assert specs["mixed"]["o_proj"] == ["model"]
    assert found["mixed"]["largest_part"]["o_proj"] == 64 * 64 * 4 // 4
    assert specs["fsdp"]["qkv_proj"] == ["model", None, None, "fsdp"]
    assert specs["fsdp"]["gate_up_proj"] == ["model", None, None, "fsdp"]
    assert specs["fsdp"]["lm_head"] == ["fsdp", "model"]
    assert specs["fsdp"]["patch_embedding"] == [None, "fsdp"]
    assert found["fsdp"]["largest_part"]["patch_embedding"] == 48 * 588 * 4 // 2
    assert all(spec == [] for spec in specs["batch"].values())
