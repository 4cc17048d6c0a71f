"""Examples on which methods part: the words of a case study, without its pictures."""

import numpy as np

from resprune_jax.experiments.report.formats import Block, Row, Table
from resprune_jax.experiments.report.reading import answers_of, questions_of
from resprune_jax.experiments.report.tables import Maker, NoTableError

RIGHT = 0.5
BESIDE = ("divprune", "random", "downsample", "uniform", "fastv")
MOST = 4  # methods beside the one tested against


def cases(maker: Maker) -> Table:
    """For each category one example that the method alone gets right, and one that it alone misses.

    The full model answers both. "Alone" goes as far as it can: the example that most of the other
    methods shown get wrong (right), the first of several. At the smallest budget.

    Raises:
        NoTableError: no other method, or no such example.
    """
    choice, own = maker.choice, maker.measured
    shown = settings_shown(maker)
    reference, beside = shown[choice.against], list(shown.values())[2:]
    keep = choice.settings[reference].keep
    full, ours = own.scores[choice.full] >= RIGHT, own.scores[reference] >= RIGHT
    theirs = (own.scores[beside] >= RIGHT).mean(0)  # [E]
    found: dict[str, list[int]] = {}
    for what, there, lone in (
        (f"{choice.against} is right", full & ours, 1 - theirs),
        (f"{choice.against} is wrong", full & ~ours, theirs),
    ):
        for group in own.members:
            could = np.where(there & group, lone, 0.0)
            if could.max() > 0:
                found.setdefault(what, []).append(int(could.argmax()))
    if not found:
        raise NoTableError(f"the methods answer alike at {keep}")
    names = {
        label: own.results.configurations[own.settings[i].members[0]]["name"]
        for label, i in shown.items()
    }
    keys = [str(own.results.keys[e]) for chosen in found.values() for e in chosen]
    said = answers_of(own.results, list(names.values()), keys)
    asked = questions_of(own.results)
    blocks = []
    for what, chosen in found.items():
        rows = []
        for e in chosen:
            question, accepted = asked[e]
            key = str(own.results.keys[e])
            answers = [said[name, key] for name in names.values()]
            rows.append(Row([key, question, ", ".join(dict.fromkeys(accepted)), *answers]))
        blocks.append(Block(what, rows))
    note = (
        f"At {keep}, one example a category, chosen because the methods part there: they say"
        " nothing about how often. Of random tokens the first draw. resprune report --case EXAMPLE"
        " draws the tokens kept."
    )
    head = ["example", "question", "accepted", *shown]
    return Table("cases", "Examples on which methods part", head, blocks, [note])


def settings_shown(maker: Maker) -> dict[str, int]:
    """The full model, the method tested against, and up to MOST others at the smallest budget.

    Raises:
        NoTableError: none of the others, or not the method itself.
    """
    choice = maker.choice
    budgets = [group for group in maker.methods() if group.reference is not None]
    if not budgets or budgets[-1].reference is None:
        raise NoTableError(f"{choice.against} was not run at the base{choice.elsewhere()}")
    keep, reference = budgets[-1].keep, budgets[-1].reference
    order = sorted(choice.methods, key=lambda n: BESIDE.index(n) if n in BESIDE else len(BESIDE))
    named = {label: choice.at_base(label, keep) for label in order if label != choice.against}
    beside = [(label, i) for label, i in named.items() if i is not None][:MOST]
    if not beside:
        raise NoTableError(f"no method beside {choice.against} was run at {keep}")
    return {"all tokens": choice.full, choice.against: reference, **dict(beside)}
