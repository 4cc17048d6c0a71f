"""Whether a method can run on a model: what it reads is there, and positions are as it needs."""

from collections.abc import Collection, Mapping

from resprune_jax.errors import CallError
from resprune_jax.methods import Method
from resprune_jax.methods.decoder.base import DecoderMethod
from resprune_jax.methods.inputs import CLIP, LAYER_NEEDS
from resprune_jax.models.families.base import Family
from resprune_jax.models.prompts.options import Positions


def check_needs(
    family: Family,
    needs: Collection[str],
    who: str,
    instead: Mapping[str, str] | None = None,
    *,
    clip: bool = False,
) -> None:
    """Refuse what a model does not have.

    Args:
        family: of the model.
        needs: see `Method.needs`.
        who: reads them.
        instead: see `Method.instead`.
        clip: whether a CLIP is beside it.

    Raises:
        CallError: what is missing.
    """
    gives = family.gives | {"text", "kind"} | (CLIP if clip else frozenset())
    if missing := sorted(set(needs) - gives - LAYER_NEEDS):
        hints = (hint for part, hint in (instead or {}).items() if part in missing)
        hint = next(hints, f"it gives {', '.join(sorted(gives))}")
        if set(missing) <= CLIP and family.takes_clip:
            hint = (
                "give the CLIP that its vision tower is from, load_model(..., clip="
                '"openai/clip-vit-large-patch14-336") or --clip, a folder or a Hub id'
            )
        raise CallError(
            f"{who} reads {', '.join(missing)}, which {family.name} does not have here: {hint}"
        )


def check_fits(
    family: Family, method: Method, positions: Positions | None = None, *, clip: bool = False
) -> None:
    """Refuse a method that cannot run on a model.

    Args:
        family: of the model.
        method: with its settings.
        positions: as the call says; None is the family's own.
        clip: whether a CLIP is beside the model.

    Raises:
        CallError: what it reads is missing, or its rows or drops need other positions.
    """
    name = type(method).__name__
    check_needs(family, method.needs, name, method.instead, clip=clip)
    if method.stage == "pixels":
        if type(family).read_smaller is Family.read_smaller:
            raise CallError(
                f"{name} makes pictures smaller, which {family.name} does not do here: it is for"
                " LLaVA-1.5, LLaVA-NeXT, Qwen2-VL and Qwen2.5-VL"
            )
        if positions is not None:
            raise CallError(
                f"positions={positions} is not for {name}, behind which no token is missing: leave"
                " it out"
            )
        return
    own = positions or family.positions
    if method.makes_rows and method.sequence == "listed" and own == "original":
        raise CallError(
            f"{name} lists its rows in an order of their own, so positions are counted through"
            f" behind it: positions=original, {family.name}'s own or the call's, is not for it"
        )
    if isinstance(method, DecoderMethod):
        if positions not in (None, method.positions):
            raise CallError(
                f"positions={positions} is not for {name}, behind whose drops they are"
                f" {method.positions}: leave it out"
            )
        if method.positions == "reindex" and family.positions == "original":
            raise CallError(
                f"{name} counts positions anew behind every drop, and those of {family.name} have"
                " axes that cannot be: it runs on models whose positions count up"
            )
