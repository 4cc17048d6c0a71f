"""The paper's own numbers beside the measured ones: matched by backbone, row and pruning ratio."""

import re
from fractions import Fraction

from resprune_jax import paper

TABLES = {"llava-1.5": "I", "llava-next": "II", "qwen2.5-vl": "III"}
"""The table of methods of each backbone."""

_BASES = {"llava-1.5": "LLaVA-1.5-7B", "llava-next": "LLaVA-NeXT-7B", "qwen2.5-vl": "Qwen2.5-VL-7B"}
_OTHER = {"adaprune": "agilepruner"}  # what the paper calls otherwise than its authors

ROWS = {
    "IV": {"full": "Full Method", "text": "Setting-1", "alpha": "Setting-2", "top": "Setting-3"},
    "VI": {"max": "Setting-1", "mean": "Setting-2", "pooled": "Setting-3"},
    "VII": {
        "cls_attention": "Setting-1", "max_norm": "Setting-2", "text": "Setting-3",
        "mean_similarity": "Setting-4", "center": "Setting-5",
    },
}  # fmt: skip
"""Rows that the paper numbers, by what we call them."""

NEXT_TOKENS = 2880
"""Visual tokens of a picture that LLaVA-NeXT cuts into four tiles, without those of new lines."""

_NEAR = 0.1  # per cent: ratios are printed with one digit


def relative(backbone: str, table: str, row: str, kept: Fraction) -> float | None:
    """The relative performance that the paper prints.

    Args:
        backbone: a key of TABLES.
        table: its numeral; "I" stands for the backbone's table of methods.
        row: the method by our name, an alpha, or a key of ROWS.
        kept: the share of the visual tokens that are kept.

    Returns:
        Per cent, None where the paper has no such row.
    """
    numeral = TABLES[backbone] if table == "I" else table
    block = ""
    for one in paper.tables()[numeral].rows:
        if one.is_base:
            block = one.name
        elif block == _BASES[backbone] and _ratio(one.group, kept) and _is(one.name, numeral, row):
            return one.relative
    return None


def row_of(backbone: str, method: str, kept: Fraction | None) -> paper.Row | None:
    """The row of a method in the backbone's table of methods.

    LLaVA-NeXT's budgets go by the counts that the table names, of its 2,880 tokens: 640 of them
    stand there as a pruning ratio of 66.7 %, and are 77.8 %.

    Args:
        backbone: a key of TABLES.
        method: by our name; "none" is the full model.
        kept: the share of the visual tokens that are kept; None for all.

    Returns:
        None where the paper has no such row.
    """
    numeral = TABLES[backbone]
    for one in paper.tables()[numeral].rows:
        if one.is_base:
            if method == "none":
                return one
        elif kept is not None and _is(one.name, numeral, method):
            count = re.search(r"up to (\d+) visual tokens", one.group or "")
            if abs(int(count[1]) - NEXT_TOKENS * kept) < 1 if count else _ratio(one.group, kept):
                return one
    return None


def _ratio(group: str | None, kept: Fraction) -> bool:
    found = re.search(r"ratio = ([0-9.]+)%", group or "")
    return found is not None and abs(float(found[1]) - 100 * (1 - float(kept))) <= _NEAR


def _is(name: str, numeral: str, row: str) -> bool:
    if numeral in ROWS:
        return ROWS[numeral].get(row) == name
    if numeral == "V":
        found = re.fullmatch(r"Alpha = ([0-9.]+)", name)
        return found is not None and float(found[1]) == float(row)
    word = name.split(" ")[0].lower()
    return _OTHER.get(word, word) == row
