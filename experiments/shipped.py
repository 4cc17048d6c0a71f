"""Where the models that came with the package lie."""

from pathlib import Path

from resprune_jax.errors import CallError

WEIGHTS = Path(__file__).parent / "pocket" / "weights"


def shipped(preset: str = "cpu") -> Path:
    """The folder of a pocket model that came with the package.

    Args:
        preset: "cpu" or "gpu".

    Raises:
        CallError: an unknown preset, or one whose weights the package does not have.
    """
    folder = WEIGHTS / preset
    if not (folder / "config.json").is_file():
        have = sorted(path.parent.name for path in WEIGHTS.glob("*/config.json"))
        raise CallError(
            f"no weights of the pocket model {preset!r} came with this package (it has"
            f" {', '.join(have) or 'none'}): train them, resprune pocket train --preset {preset}"
        )
    return folder
