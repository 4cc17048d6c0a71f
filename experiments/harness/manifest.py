"""What lmms-eval reads on its import to know the model `resprune`: names, and nothing else."""

from typing import Any

MODEL = "resprune"
"""What follows `--model`."""


def manifest() -> Any:
    """The entry point of the group `lmms_eval.models`; the classes are imported when one is asked.

    Returns:
        lmms-eval's `ModelManifest`.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id=MODEL,
        chat_class_path="resprune_jax.experiments.harness.model.ResPrune",
        simple_class_path="resprune_jax.experiments.harness.simple.ResPruneSimple",
    )
