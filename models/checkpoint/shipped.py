"""Checkpoints that come with the package, by the names that `load_model` and the commands take."""

from pathlib import Path

from resprune_jax.errors import CallError

PACKAGE = Path(__file__).parents[2]
"""The folder that holds `models/` and `experiments/`, in a checkout as in an installed package."""

POCKET = "pocket"
"""The small model that is truly trained, on drawn scenes."""

SHIPPED = {POCKET: "experiments/pocket/weights/cpu"}
"""Where each lies in the package, as data: nothing is imported from there."""


def shipped(name: str = POCKET) -> Path:
    """The folder of a checkpoint that came with the package.

    Args:
        name: one of `SHIPPED`.

    Raises:
        CallError: another name, or the package came without these weights.
    """
    if name not in SHIPPED:
        raise CallError(f"no model {name!r} comes with this package: it has {', '.join(SHIPPED)}")
    folder = PACKAGE / SHIPPED[name]
    if not (folder / "config.json").is_file():
        raise CallError(
            f"the weights of the model {name!r} did not come with this package: install it again,"
            " or train them (resprune pocket train) and give their folder"
        )
    return folder
