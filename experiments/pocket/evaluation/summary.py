"""What a measurement comes to: accuracies, losses and gains with 95 % intervals, as plain data."""

import hashlib
from dataclasses import asdict
from typing import Any

import numpy as np

from resprune_jax.experiments.pocket.evaluation.measure import METHODS, Measured, Setting, preset_of
from resprune_jax.experiments.pocket.scenes.frozen import digest
from resprune_jax.experiments.pocket.scenes.questions import FAMILIES
from resprune_jax.experiments.statistics import Estimate, clustered, share
from resprune_jax.experiments.words import version_of
from resprune_jax.models.api import LVLM
from resprune_jax.models.prompts.budgets import count

PAIRS = (("resprune", "random"), ("resprune", "alpha0"), ("oracle", "random"))
"""What is set against each other at every ratio."""
SLICE = 40
"""Scenes, the first ones: 200 questions, which `make test` asks again."""

Figures = dict[str, Any]


class _Questions:
    """Which family, kind and scene each of a measurement's questions belongs to."""

    def __init__(self, measured: Measured, rng_seed: int) -> None:
        asked = [question for _, questions in measured.items for question in questions]
        per_scene = [len(questions) for _, questions in measured.items]
        self.scenes = np.repeat(np.arange(len(per_scene)), per_scene)  # [Q]
        self.kinds = np.array([f"{question.family}, {question.kind}" for question in asked])
        family = np.array([question.family for question in asked])
        groups = {"overall": np.ones(len(asked), bool)}
        groups |= {name: family == name for name in FAMILIES}
        self.groups = {name: group for name, group in groups.items() if group.any()}
        self._rng_seed = rng_seed

    def accuracy(self, right: np.ndarray) -> dict[str, Figures]:
        """Of all and of each family; see `share` for the intervals."""
        table = {}
        for name, group in self.groups.items():
            hits = np.bincount(self.scenes, np.where(group, right, 0.0))
            asked = np.bincount(self.scenes, group)
            counts = {"right": round(float(hits.sum())), "asked": int(asked.sum())}
            table[name] = counts | _rounded(share(hits, asked))
        return table

    def kind_counts(self, right: np.ndarray) -> dict[str, list[int]]:
        """Right answers and questions of every kind."""
        return {
            str(kind): [
                round(float(right[self.kinds == kind].sum())),
                int((self.kinds == kind).sum()),
            ]
            for kind in np.unique(self.kinds)
        }

    def means(self, values: np.ndarray) -> dict[str, Figures]:
        """The mean of all and of each family, resampled by scene; NaN is left out."""
        table = {}
        for name, group in self.groups.items():
            known = group & ~np.isnan(values)
            if known.any():
                totals = np.bincount(self.scenes, np.where(known, values, 0.0))
                estimate = clustered(totals, np.bincount(self.scenes, known), self._rng_seed)
                table[name] = {"questions": int(known.sum())} | _rounded(estimate)
        return table


def _rounded(estimate: Estimate) -> Figures:
    return {name: round(value, 5) for name, value in asdict(estimate).items()}


def summary(
    lvlm: LVLM, measured: Measured, *, model: str, split: str, rng_seed: int = 0
) -> Figures:
    """The figures, as the results file holds them; shares, not per cent.

    Args:
        lvlm: the model that was measured.
        measured: what it said.
        model: its name.
        split: which scenes were asked about.
        rng_seed: of random tokens and of the bootstrap.

    Returns:
        `settings`, each with accuracies and with what it lost of the full model's; `comparisons` of
        PAIRS, and of every other method with random tokens; `relevance_auc`; `slice`, right answers
        about the first SLICE scenes; and where all
        of it comes from.
    """
    questions = _Questions(measured, rng_seed)
    total = lvlm.config.num_visual_tokens
    drawn: dict[str, list[np.ndarray]] = {}
    for setting in measured.settings:
        first = Setting(setting.method, setting.ratio).name
        drawn.setdefault(first, []).append(measured.right(setting.name))
    right = {name: np.mean(answers, axis=0) for name, answers in drawn.items()}
    rows = []
    for setting in measured.settings:
        if setting.draw:
            continue  # its answers are in the mean of all draws
        own = right[setting.name]
        row: Figures = {
            "name": setting.name,
            "method": setting.method,
            "ratio": None if setting.ratio is None else str(setting.ratio),
            "budget": total if setting.ratio is None else count(float(setting.ratio), total),
            "kept": round(float(measured.kept[setting.name].mean()), 2),
            "average": round(float(measured.averages[setting.name].mean()), 2),
            "times": {
                part: round(ms, 4) for part, ms in measured.times.get(setting.name, {}).items()
            },
            "draws": len(drawn[setting.name]),
            "accuracy": questions.accuracy(own),
            "kinds": questions.kind_counts(own),
        }
        if setting.method != "full":
            row["lost"] = questions.means(right["full"].astype(float) - own)
        rows.append(row)
    comparisons = []
    for ratio in dict.fromkeys(setting.ratio for setting in measured.settings if setting.ratio):
        named = [s.method for s in measured.settings if s.ratio == ratio and not s.draw]
        beside = [(name, "random") for name in named if name not in METHODS]
        for one, other in (*PAIRS, *beside):
            ours, theirs = (right.get(Setting(name, ratio).name) for name in (one, other))
            if ours is not None and theirs is not None:
                gain = questions.means(ours.astype(float) - theirs)
                comparisons.append(
                    {"ratio": str(ratio), "method": one, "over": other, "gain": gain["overall"]}
                )
    head = questions.scenes < SLICE
    return {
        "model": model,
        "weights": weights_digest(lvlm),
        "preset": preset_of(lvlm),
        "split": split,
        "visual_tokens": total,
        "scenes": len(measured.items),
        "questions": len(head),
        "contents": digest(measured.items).contents,
        "rng_seed": rng_seed,
        "noun_backend": measured.noun_backend,
        "versions": {name: version_of(name) for name in ("resprune-jax", "jax")},
        "seconds": round(measured.seconds, 1),
        "settings": rows,
        "comparisons": comparisons,
        "relevance_auc": questions.means(measured.aucs),
        "slice": {
            "scenes": min(SLICE, len(measured.items)),
            "questions": int(head.sum()),
            "right": {name: int(answers[0][head].sum()) for name, answers in drawn.items()},
        },
    }


def weights_digest(lvlm: LVLM) -> str:
    """The SHA-256 sum of a checkpoint's weight files, in the order of their names."""
    total = hashlib.sha256()
    for path in sorted(lvlm.path.glob("*.safetensors")):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
