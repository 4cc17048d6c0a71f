"""What a caller may write where an array or a number belongs, and what is made of it.

Lists, tuples, NumPy's and torch's numbers are converted; JAX's arrays and tracers pass as they are,
their values unread. Anything else is a `CallError` that says what was given. Neither JAX nor torch
is imported here: where nobody has, there are no such arrays.
"""

import operator
import sys
from collections.abc import Mapping, Set
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .errors import CallError, shown

if TYPE_CHECKING:
    import jax

Kind = Literal["float", "number", "whole", "truth"]
"""Floating point; any real number; whole numbers; True and False (0 and 1 are read as such)."""

_MEANING = {
    "float": "floating point numbers",
    "number": "numbers",
    "whole": "whole numbers",
    "truth": "True and False",
}
LARGEST = float(np.finfo(np.float32).max)


def array_of(name: str, value: Any, kind: Kind) -> "jax.Array | np.ndarray":
    """An argument as an array, its dtype and shape known.

    Args:
        name: of the argument, for the message.
        value: an array of NumPy, JAX or torch, a number, or a nested list of numbers.
        kind: what it holds.

    Returns:
        JAX's arrays as they are; everything else as a NumPy array in this machine's byte order.

    Raises:
        CallError: it is none of these, or holds something else.
    """
    found = value if _is_jax(value) else _on_host(name, value, kind)
    if not _holds(found, kind):
        raise CallError(f"{name} holds {_MEANING[kind]}, got {_described(value, found)}")
    return found


def whole(name: str, value: Any, *, least: int = 1, what: str = "whole number") -> int:
    """An argument that is one whole number, and static: known before anything is compiled.

    Raises:
        CallError: something else, or less than `least`.
    """
    number = None
    if not isinstance(value, bool | np.bool_) and str(getattr(value, "dtype", "")) not in _TRUTHS:
        try:
            number = operator.index(value)
        except Exception:  # no whole number, or a traced one
            number = None
    if number is None or number < least:
        raise CallError(f"{name} must be a {what}, at least {least}, got {shown(value)}")
    return number


def numbers(value: Any) -> float | tuple[float, ...] | None:
    """A real number as it is, a row of them as a tuple, None for anything else."""
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, Real):
        # A NumPy scalar would be compared in its own, maybe narrow dtype.
        return value.item() if isinstance(value, np.generic) else value  # type: ignore[return-value]
    try:
        found = np.asarray(array_of("", value, "number"))
    except Exception:  # a tracer has no value either
        return None
    if _sort(found.dtype) == "float":
        found = found.astype(np.float64)
    if found.ndim > 1:
        return None
    return tuple(found.tolist()) if found.ndim else found.tolist()


_TRUTHS = ("bool", "torch.bool")


def _on_host(name: str, value: Any, kind: Kind) -> np.ndarray:
    try:
        found = _from_torch(value) if is_torch(value) else _from_numbers(value)
    except Exception:  # rows of several lengths, arrays of another device, numbers beyond any dtype
        found = None
    if found is None or not _sort(found.dtype):
        raise CallError(
            f"{name} holds {_MEANING[kind]}, got {_described(value, found)}: give an array, or a"
            " list of numbers"
        )
    if found.dtype.kind == "f" and found.dtype.itemsize > 8:  # long double, which no device knows
        found = found.astype(np.float64)
    if not found.dtype.isnative:
        found = found.astype(found.dtype.newbyteorder("="))
    if kind == "float" and isinstance(value, list | tuple) and _sort(found.dtype) == "whole":
        found = found.astype(np.float32)
    return found


def _from_numbers(value: Any) -> np.ndarray | None:
    if value is None or isinstance(value, str | bytes | bytearray | Mapping | Set):
        return None
    return np.asarray(value)


def is_torch(value: Any) -> bool:
    """Whether it is a tensor of torch; nobody is made to install that."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, getattr(torch, "Tensor", ()))


def _from_torch(value: Any) -> np.ndarray:
    torch = sys.modules["torch"]
    value = value.detach().cpu().resolve_conj().resolve_neg()
    if value.dtype == torch.bfloat16:  # NumPy has no such numbers without this
        import ml_dtypes

        return value.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return value.numpy()


def _is_jax(value: Any) -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.Array)


def _sort(dtype: Any) -> str:
    """What numbers of a dtype are: "float", "whole", "truth" or, where they are none, ""."""
    kind = getattr(dtype, "kind", "")  # a random key has none
    if kind == "V" and getattr(dtype.type, "__module__", "").startswith("ml_dtypes"):
        return "float" if "float" in dtype.name else "whole"
    return {"f": "float", "i": "whole", "u": "whole", "b": "truth"}.get(kind, "")


def _holds(found: "jax.Array | np.ndarray", kind: Kind) -> bool:
    sort = _sort(found.dtype)
    if kind == "number":
        return sort in ("float", "whole")
    if kind != "truth" or sort == "truth":
        return sort == kind
    return sort == "whole" and (_is_jax(found) or bool(np.all((found == 0) | (found == 1))))


def _described(value: Any, found: "jax.Array | np.ndarray | None") -> str:
    """What was given, in a few words."""
    if found is None or found.dtype == object:
        return (
            shown(value)
            if found is None or found.ndim == 0
            else f"a {type(value).__name__} of other things"
        )
    if found.ndim == 0 and not _is_jax(found):
        return shown(value)
    dtype = "text" if getattr(found.dtype, "kind", "") in "SU" else str(found.dtype)
    return f"{dtype} of shape {tuple(found.shape)}"


def one_length(sizes: dict[str, int]) -> tuple[int, ...]:
    """The one length that all conditions with a batch axis share, () where none has one."""
    if empty := [name for name, size in sizes.items() if size == 0]:
        raise CallError(f"{empty[0]} has no entry: give one a selection, or a single one for all")
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise CallError(f"the conditions must agree on the number of selections, got {said}")
    return tuple(sizes.values())[:1]


_WORDS = {"true": True, "false": False, "none": None}


def settings_by_name(given: Any) -> dict[str, Any]:
    """Settings of a method by name, of a mapping or of texts NAME=VALUE.

    Raises:
        CallError: something else, or a name twice.
    """
    if isinstance(given, Mapping) and all(isinstance(name, str) for name in given):
        return dict(given)
    found: dict[str, Any] = {}
    for each in given if isinstance(given, list | tuple) else [given]:
        name, equals, value = each.partition("=") if isinstance(each, str) else ("", "", "")
        if not (equals and name.isidentifier()) or name in found:
            raise CallError(
                "method settings are a mapping, or texts such as combine=add, each name once; got"
                f" {shown(each)}"
            )
        found[name] = read_setting(value)
    return found


def read_setting(text: str) -> Any:
    """A number, true, false or none where it is one, else the text itself."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return _WORDS.get(text.lower(), text)
