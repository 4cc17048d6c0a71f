"""A slow, plain reading of the official scoring rules: the second opinion on the project's scorers.

Written from the rules alone (rows/README.md names each source), with nothing of the project and
nothing but the standard library, so that it shares no mistake with what it judges. One function a
rule; a row is a mapping of the benchmark's own columns, a prediction is the model's text.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

Row = Mapping[str, Any]


def words(text: str) -> list[str]:
    """The words of a list that is easier to read as a text."""
    return text.split()


# --- VQAv2, TextVQA, VizWiz ----------------------------------------------------------------------

NUMBERS = dict(
    zip(
        words("none zero one two three four five six seven eight nine ten"),
        words("0 0 1 2 3 4 5 6 7 8 9 10"),
        strict=True,
    )
)
# Marks that the rule drops or turns into a blank. The apostrophe, the colon, the period and every
# sign that is not ASCII stay.
MARKS = ';/[]"{}()=+\\_-><@`,?!'
# The official code gives the number of a regex flag where the number of replacements stands.
MOST_PERIODS = 32


def _contractions() -> dict[str, str]:
    """The contractions that get their apostrophe back, told by their endings."""
    table = {}
    for stem in words(
        "ai are ca could did does do had has have is might must need ought sha should was were "
        "wo would"
    ):
        table[stem + "nt"] = stem + "n't"
    for stem in words("could had might should would"):
        table[stem + "n'tve"] = table[stem + "nt've"] = stem + "n't've"
    for stem in words("could might must not should they we what where who would you I"):
        table[stem + "ve"] = stem + "'ve"
    for stem in words("he how it someone something there they where who you"):
        table[stem + "d"] = stem + "'d"
    for stem in words("he it she somebody someone something there they we who you I"):
        table[stem + "d've"] = table[stem + "'dve"] = stem + "'d've"
    for stem in words("how it somebody someone something they what who why you"):
        table[stem + "ll"] = stem + "'ll"
    for stem in words("there they what why you"):
        table[stem + "re"] = stem + "'re"
    for stem in words("he how somebody someone that there what when where who why"):
        table[stem + "s"] = stem + "'s"
    for form in ("yall'd've", "y'alld've", "y'all'dve"):
        table[form] = "y'all'd've"
    for form in ("ow's'at", "'ows'at", "'ow'sat"):
        table[form] = "'ow's'at"
    table |= {"yall": "y'all", "yall'll": "y'all'll", "y'allll": "y'all'll", "Im": "I'm"}
    table |= {"maam": "ma'am", "oclock": "o'clock", "twas": "'twas", "somebody'd": "somebodyd"}
    return table | {"let's": "let's", "she's": "she's"}


CONTRACTIONS = _contractions()


def without_marks(text: str) -> str:
    """A mark beside a blank goes, another becomes a blank; with a comma between digits all go."""
    digit_comma = any(
        text[at] == "," and text[at - 1].isdecimal() and text[at + 1].isdecimal()
        for at in range(1, len(text) - 1)
    )
    out = text
    for mark in MARKS:
        beside_blank = mark + " " in text or " " + mark in text
        out = out.replace(mark, "" if beside_blank or digit_comma else " ")
    kept, dropped = [], 0
    for at, sign in enumerate(out):
        before_digit = at + 1 < len(out) and out[at + 1].isdecimal()
        if sign == "." and not before_digit and dropped < MOST_PERIODS:
            dropped += 1
        else:
            kept.append(sign)
    return "".join(kept)


def plain_words(text: str) -> str:
    """Lower case, number words as digits, no articles, contractions with their apostrophe."""
    kept = [NUMBERS.get(word, word) for word in text.lower().split()]
    kept = [word for word in kept if word not in ("a", "an", "the")]
    return " ".join(CONTRACTIONS.get(word, word) for word in kept)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def visualqa(text: str) -> str:
    """The processing that visualqa.org describes for both sides."""
    return plain_words(without_marks(_one_line(text)))


def evalai(text: str) -> str:
    """EvalAI's answer processor: commas, question marks and the possessive are cut off first."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return visualqa(text)


def leave_one_out(prediction: str, truths: Sequence[str]) -> float | None:
    """Mean over the annotators of min(matches among the others / 3, 1); None without annotators."""
    if not truths:
        return None
    total = Fraction(0)
    for left_out in range(len(truths)):
        others = [truth for at, truth in enumerate(truths) if at != left_out]
        total += min(Fraction(others.count(prediction), 3), Fraction(1))
    return float(total / len(truths))


def annotators(row: Row) -> list[str]:
    """The annotators' answers as strings: VQAv2 wraps each in a struct."""
    return [a["answer"] if isinstance(a, Mapping) else a for a in row["answers"] or []]


def vqa(benchmark: str, prediction: str, row: Row) -> float | None:
    """VQA accuracy of one answer: VQAv2 by visualqa.org, TextVQA and VizWiz by EvalAI."""
    tidy = visualqa if benchmark == "vqav2" else evalai
    return leave_one_out(tidy(prediction), [tidy(truth) for truth in annotators(row)])


def vqa_variants(benchmark: str, prediction: str, row: Row) -> dict[str, float | str | None]:
    """What other official readings give: each named in the README."""
    raw = annotators(row)
    if not raw:
        return {}
    if benchmark == "textvqa":
        right = vqa(benchmark, prediction, row)
        return {"llava": right if len(raw) == 10 else "error"}
    if benchmark == "vizwiz":
        return {"vizwiz_server": leave_one_out(visualqa(evalai(prediction)), raw)}
    upload = leave_one_out(visualqa(evalai(prediction)), [visualqa(truth) for truth in raw])
    # The code normalises only where the annotators differ, and leaves out every struct that is
    # equal to the one left out, not that one alone.
    tidy = visualqa if len({_one_line(truth) for truth in raw}) > 1 else _one_line
    structs = [{**a, "answer": tidy(a["answer"])} for a in row["answers"]]
    code = Fraction(0)
    for mine in structs:
        others = [a["answer"] for a in structs if a != mine]
        code += min(Fraction(others.count(tidy(prediction)), 3), Fraction(1))
    return {"llava_upload": upload, "visualqa_code": float(code / len(structs))}


# --- GQA, ScienceQA ------------------------------------------------------------------------------


def gqa(prediction: str, row: Row) -> float:
    """LLaVA's conversion (final periods off, lower case), then the official string equality."""
    return float(prediction.strip().rstrip(".").lower() == row["answer"])


def sqa_letter(prediction: str) -> str | None:
    """LLaVA's reading: a bare letter, `X. ` at the start, or one `The answer is X` + a sign."""
    text = prediction.strip()
    if text in tuple("ABCDE"):
        return text
    if len(text) >= 3 and text[0] in "ABCDE" and text[1:3] == ". ":
        return text[0]
    phrase, found, at = "The answer is ", [], text.find("The answer is ")
    while at >= 0:
        end = at + len(phrase)
        letter, after = text[end : end + 1], text[end + 1 : end + 2]
        if letter and letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" and after not in ("", "\n"):
            found.append(letter)
            end += 2
        at = text.find(phrase, end)
    return found[0] if len(found) == 1 else None


def sqa(prediction: str, row: Row) -> float:
    """Right where the letter read names the choice with the row's index."""
    letter = sqa_letter(prediction)
    known = "ABCDE"[: len(row["choices"])]
    return float(letter is not None and letter in known and known.index(letter) == row["answer"])


# --- POPE ----------------------------------------------------------------------------------------


def pope_answer(prediction: str) -> str:
    """`no` where the first sentence holds the word No, no or not, else `yes`."""
    first = prediction.strip().split(".")[0].replace(",", "")
    return "no" if {"No", "no", "not"} & set(first.split(" ")) else "yes"


def pope(prediction: str, row: Row) -> float:
    """One point for the row's label."""
    return float(pope_answer(prediction) == row["answer"])


def pope_counts(pairs: Iterable[tuple[str, Row]]) -> dict[str, float]:
    """Counts, accuracy, precision, recall, F1 (yes is positive) and the share of predicted yes."""
    cells = {"TP": 0, "FP": 0, "TN": 0, "FN": 0}
    for prediction, row in pairs:
        said, true = pope_answer(prediction), row["answer"]
        cells[("T" if said == true else "F") + ("P" if said == "yes" else "N")] += 1
    tp, fp, tn, fn = (cells[name] for name in ("TP", "FP", "TN", "FN"))
    total = tp + fp + tn + fn
    precision = tp / (tp + fp) if tp + fp else 0.0
    recall = tp / (tp + fn) if tp + fn else 0.0
    both = precision + recall
    return cells | {
        "accuracy": (tp + tn) / total,
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / both if both else 0.0,
        "yes_ratio": (tp + fp) / total,
    }


def pope_scores(pairs: Sequence[tuple[str, Row]]) -> dict[str, Any]:
    """By split, over all rows, and the mean F1 and accuracy of the splits that are there."""
    splits = sorted({row["category"] for _, row in pairs})
    by = {split: pope_counts(p for p in pairs if p[1]["category"] == split) for split in splits}
    return {
        "splits": by,
        "all": pope_counts(pairs),
        "mean_f1": sum(by[split]["f1"] for split in splits) / len(splits),
        "mean_accuracy": sum(by[split]["accuracy"] for split in splits) / len(splits),
    }


# --- MME -----------------------------------------------------------------------------------------

PERCEPTION = words("existence count position color posters celebrity scene landmark artwork OCR")
COGNITION = words("commonsense_reasoning numerical_calculation text_translation code_reasoning")


def mme_answer(prediction: str) -> str:
    """`yes` or `no` where the first four signs hold it (yes is looked for first), else `other`."""
    start = prediction.strip().lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def mme(prediction: str, row: Row) -> float:
    """One point where the label read is the row's."""
    return float(mme_answer(prediction) == row["answer"].strip().lower())


def mme_scores(pairs: Sequence[tuple[str, Row]]) -> dict[str, Any]:
    """100 x (accuracy + accuracy of whole pairs) by subtask, and the sums of the two halves."""
    images: dict[tuple[str, str], list[float]] = {}
    for prediction, row in pairs:
        if row["category"] not in PERCEPTION + COGNITION:
            return {"error": f"unknown subtask {row['category']}"}
        images.setdefault((row["category"], row["question_id"]), []).append(mme(prediction, row))
    for (subtask, image), points in images.items():
        if len(points) != 2:
            return {"error": f"{subtask} {image}: {len(points)} questions, a pair was expected"}
    subtasks = {}
    for subtask in PERCEPTION + COGNITION:
        mine = [points for (name, _), points in images.items() if name == subtask]
        if mine:
            acc = sum(map(sum, mine)) / (2 * len(mine))
            plus = sum(sum(points) == 2 for points in mine) / len(mine)
            subtasks[subtask] = {"acc": acc, "acc_plus": plus, "score": 100 * acc + 100 * plus}
    halves = {
        "perception": sum(subtasks[n]["score"] for n in PERCEPTION if n in subtasks),
        "cognition": sum(subtasks[n]["score"] for n in COGNITION if n in subtasks),
    }
    return {"subtasks": subtasks, **halves, "total": sum(halves.values())}


# --- MMBench -------------------------------------------------------------------------------------

ROUND = 1_000_000  # a rotation's index is the question's plus a multiple of this
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def mmbench_options(row: Row) -> dict[str, str]:
    """The row's options by letter; a missing one is None, NaN or the word nan in the files."""
    found = {}
    for letter in "ABCDE":
        value = row.get(letter)
        absent = value is None or (isinstance(value, float) and math.isnan(value))
        if not absent and str(value).lower() != "nan":
            found[letter] = str(value)
    return found


def mmbench_letter(prediction: str, row: Row) -> str | None:
    """VLMEvalKit's matching without a judge: a lone letter, `answer is X`, one option's text."""
    options = mmbench_options(row)
    if any(refusal in prediction for refusal in REFUSALS):
        return None
    spaced = prediction
    for sign in ".()[],:;!*#{}":
        spaced = spaced.replace(sign, " ")
    parts = spaced.split()
    letters = [letter for letter in options if letter in parts]
    if len(letters) == 1 and parts.index(letters[0]) > len(parts) - 5:
        return letters[0]
    if not letters and "Z" in parts:
        return None
    named = _after_answer_is(prediction)
    if named in options:
        return named
    if len(prediction) > 2 * sum(len(text) for text in options.values()):
        return None
    inside = [letter for letter, text in options.items() if text.lower() in prediction.lower()]
    return inside[0] if len(inside) == 1 else None


def _after_answer_is(prediction: str) -> str | None:
    """The first A to D, any case, behind `answer is` (blanks between) and any stars."""
    low, at = prediction.lower(), 0
    while (at := low.find("answer", at)) >= 0:
        at += len("answer")
        rest = low[at:]
        if rest.lstrip() != rest and (rest := rest.lstrip()).startswith("is"):
            rest = rest[2:]
            if rest.lstrip() != rest and (rest := rest.lstrip().lstrip("*"))[:1] in tuple("abcd"):
                return rest[0].upper()
    return None


def mmbench(prediction: str, row: Row) -> float:
    """One row alone, as plain (not circular) accuracy counts it."""
    return float(mmbench_letter(prediction.strip(), row) == row["answer"])


def mmbench_scores(pairs: Sequence[tuple[str, Row]]) -> dict[str, Any]:
    """Circular accuracy in all, by L2-category and category; a question is right where all are."""
    mains = [row for _, row in pairs if row["index"] < ROUND]
    hits = []
    for main in mains:
        group = [p for p in pairs if p[1]["index"] % ROUND == main["index"]]
        hits.append(float(all(mmbench(prediction, row) == 1 for prediction, row in group)))
    out: dict[str, Any] = {"questions": len(mains), "circular": sum(hits) / len(hits)}
    plain = [mmbench(p, row) for p, row in pairs if row["index"] < ROUND]
    out["plain"] = sum(plain) / len(plain)
    for column in ("L2-category", "category"):
        names = sorted({row[column] for row in mains})
        groups = {n: [h for h, m in zip(hits, mains, strict=True) if m[column] == n] for n in names}
        out[column] = {name: sum(group) / len(group) for name, group in groups.items()}
    return out
