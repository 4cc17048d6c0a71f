"""What products of float32 parameters are computed in.

An accelerator's compiler may round the operands of a float32 product to TF32 (11 bits, GPUs) or
bfloat16 (8 bits, TPUs) and does so by default; docs/explanation/performance.md has what that did to
logits. Here float32 parameters mean float32 products on every backend, as in torch; less is had by
name.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar, get_args

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from resprune_jax.choices import Precision
from resprune_jax.errors import CallError, one_of

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def resolve_precision(precision: Precision | None, dtype: DTypeLike) -> Precision | None:
    """What products are computed in, `None` for parameters that are not float32.

    Args:
        precision: as given; `None` for the parameters' own.
        dtype: of the parameters.

    Raises:
        CallError: an unknown name, or one for parameters of 16 bits, whose products the matrix unit
            takes as they are and sums in float32.
    """
    exact = jnp.dtype(dtype) == jnp.float32
    if precision is None:
        return "float32" if exact else None
    one_of("precision", precision, get_args(Precision))
    if not exact:
        raise CallError(
            f"precision={precision!r} speaks of float32 parameters, these are"
            f" {jnp.dtype(dtype).name}: leave it out, or load them as float32"
        )
    return precision


def computed_in(
    precision: Precision | None, function: Callable[Arguments, Result]
) -> Callable[Arguments, Result]:
    """The function, its products traced in this precision; signature and name stay."""
    if precision is None:
        return function

    @functools.wraps(function)
    def traced(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        with jax.default_matmul_precision(precision):
            return function(*args, **options)

    return traced
