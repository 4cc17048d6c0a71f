"""Metrics against slow rules and invented rows that hold the known traps."""

import itertools
import string
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resprune_jax.errors import CallError
from resprune_jax.experiments.data.metrics import METRICS, letter_of, plain, problem, score
from resprune_jax.experiments.data.vqa import accuracy, processed

WORDS = st.sampled_from(
    ["yes", "no", "2", "two", "the dog", "a dog", "dog", "dont", "don't", "1.5"]
)

ROWS = [
    # metric, answer, accepted, score
    ("exact", "The red car.", ["red car"], 1),
    ("exact", "RED  CAR!", ["a red car"], 1),
    ("exact", "red cars", ["red car"], 0),
    ("exact", "1,000", ["1000"], 1),
    ("exact", "3.5", ["35"], 0),
    ("exact", "3.5.", ["3.5"], 1),
    ("exact", "-5", ["5"], 0),
    ("exact", "−5", ["-5"], 1),
    ("exact", "left-hand", ["left hand"], 1),
    ("exact", "dog’s", ["dogs"], 1),
    ("exact", "Straße", ["STRASSE"], 1),
    ("exact", "ﬁve", ["five"], 1),
    ("exact", "a", ["A"], 1),
    ("exact", "A", ["the"], 0),
    ("exact", "a", ["", "?"], 0),
    ("exact", "?", ["!"], 0),
    ("exact", "$5", ["5"], 0),
    ("exact", "", ["the cat"], 0),
    ("contains", "It is a red car, I think.", ["red car"], 1),
    ("contains", "It is scared.", ["red"], 0),
    ("contains", "red", ["red car"], 0),
    ("contains", "anything", ["", "b"], 0),
    ("gqa", " Yes. ", ["yes"], 1),
    ("gqa", "yes..", ["Yes"], 1),
    ("gqa", "yes!", ["yes"], 0),
    ("gqa", "the dog", ["dog"], 0),
    ("yesno", "Yes.", ["yes"], 1),
    ("yesno", "Yes, there is no doubt.", ["yes"], 1),
    ("yesno", "No, there is not", ["no"], 1),
    ("yesno", "There isn't a dog. Yes it is a cat", ["no"], 1),
    ("yesno", "There is not.", ["no"], 1),
    ("yesno", "There isn’t.", ["No"], 1),
    ("yesno", "", ["yes"], 0),
    ("yesno", "", ["no"], 0),
    ("yesno", "A dog.", ["yes"], 0),
    ("yesno", "yesterday", ["yes"], 0),
    ("yesno", "nothing", ["no"], 0),
    ("yesno", "...\nYES", ["yes"], 1),
    ("pope", "There is a dog", ["yes"], 1),
    ("pope", "", ["yes"], 1),
    ("pope", "No, it does", ["no"], 1),
    ("pope", "Yes. There is no cat", ["yes"], 1),
    ("pope", "It is not there", ["no"], 1),
    ("pope", "nothing", ["yes"], 1),
    ("choice", "B", ["B"], 1),
    ("choice", "b", ["B"], 1),
    ("choice", "B.", ["B"], 1),
    ("choice", "(B)", ["B"], 1),
    ("choice", "[b]", ["b"], 1),
    ("choice", "(b).", ["B"], 1),
    ("choice", "B) a dog", ["B"], 1),
    ("choice", "B. a dog", ["B"], 1),
    ("choice", "(b) a dog", ["B"], 1),
    ("choice", "B: a dog", ["B"], 1),
    ("choice", "The answer is B.", ["B"], 1),
    ("choice", "The correct answer is: (b)", ["B"], 1),
    ("choice", "Answer: B", ["B"], 1),
    ("choice", "The answer is option B", ["B"], 1),
    ("choice", "I choose option B here", ["B"], 1),
    ("choice", "The answer is A dog", ["A"], 0),
    ("choice", "A dog", ["A"], 0),
    ("choice", "I see a dog", ["I"], 0),
    ("choice", "The answer is A. The answer is B.", ["A"], 0),
    ("choice", "The answer is A. The answer is B.", ["B"], 0),
    ("choice", "The answer is A. So option A it is.", ["A"], 1),
    ("choice", "Boat", ["B"], 0),
    ("choice", "", ["A"], 0),
    ("choice", "a dog", ["B", "the dog"], 1),
    ("pocket", " Two ", ["2"], 1),
    ("pocket", "LEFT", ["left"], 1),
    ("pocket", "left.", ["left"], 0),
]  # fmt: skip


@pytest.mark.parametrize(("metric", "answer", "accepted", "right"), ROWS)
def test_invented_rows(metric: str, answer: str, accepted: list[str], right: float) -> None:
    assert score(metric, answer, accepted) == right


PROCESSED = [
    ("Yes.", "yes"),
    ("The two dogs", "2 dogs"),
    ("none", "0"),
    ("Ten", "10"),
    ("eleven", "eleven"),
    ("a the an", ""),
    ("theatre", "theatre"),
    ("1,000", "1000"),
    ("red, green", "red green"),
    ("left-hand", "left hand"),
    ("left - hand", "left hand"),
    ("left- hand-made", "left handmade"),
    ("2.5", "2.5"),
    ("U.S.A.", "usa"),
    (".5", ".5"),
    ("v.2", "v.2"),
    ("10:30", "10:30"),
    ("girl's", "girl 's"),
    ("girl 's", "girl 's"),
    ("girls'", "girls'"),
    ("its a's", "its 's"),
    (".b)_',s", "b 's"),
    ("?\n_b_c", "b c"),
    ("whyre", "why're"),
    ("dont", "don't"),
    ("Couldnt've", "couldn't've"),
    ("couldntve", "couldntve"),
    ("couldn'tve", "couldn't've"),
    ("y'allll", "y'all'll"),
    ("yall'd've", "y'all'd've"),
    ("twas", "'twas"),
    ("hes", "he's"),
    ("oclock", "o'clock"),
    ("im", "im"),
    ("shes", "shes"),
    ("w" + 33 * ".", "w."),
    ("well", "well"),
    ("its", "its"),
    ("lets", "lets"),
    ("what?", "what"),
    ("(red)", "red"),
    ("a\nb\tc", "b c"),
    ("red/blue", "red blue"),
    ("50%", "50%"),
    ("$5", "$5"),
    ("  two   cats ", "2 cats"),
]


@pytest.mark.parametrize(("text", "form"), PROCESSED)
def test_answers_are_processed_as_published(text: str, form: str) -> None:
    assert processed(text) == form


def test_rules_of_contractions_make_only_their_own_words() -> None:
    """Words that are no contractions stay as they are, with or without an apostrophe."""
    for word in ("were", "hell", "shell", "ill", "wed", "shed", "id", "won't", "can't", "whore"):
        assert processed(word) == word


TENS = st.lists(WORDS, min_size=10, max_size=10)


@settings(deadline=None)
@given(answer=WORDS, answers=TENS | st.lists(WORDS, min_size=4, max_size=13))
def test_vqa_accuracy_is_the_mean_over_all_who_are_left_out(
    answer: str, answers: list[str]
) -> None:
    forms = [processed(text) for text in answers]
    scores = [
        min(Fraction(sum(form == processed(answer) for form in others), 3), Fraction(1))
        for others in itertools.combinations(forms, len(forms) - 1)
    ]
    expected = float(sum(scores) / len(scores))
    assert accuracy(answer, answers) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("agree", "right"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)]
)
def test_vqa_accuracy_of_ten(agree: int, right: float) -> None:
    answers = ["The Cat."] * agree + [f"other {i}" for i in range(10 - agree)]
    assert score("vqa", "a cat", answers) == pytest.approx(right)


def slow_plain(text: str) -> str:
    """`exact`'s form of ASCII texts, word by word."""
    text = text.lower()
    for left, right in itertools.product(string.digits, repeat=2):
        while f"{left},{right}" in text:
            text = text.replace(f"{left},{right}", left + right)
    text = text.replace("'", "")
    words: list[str] = []
    for start in text.split():
        word = ""
        for i, char in enumerate(start):
            last, following = start[i - 1 : i] if i else "", start[i + 1 : i + 2]
            inside = char == "." and last.isdigit() and following.isdigit()
            if inside or (char == "-" and not last and following.isdigit()):
                word += char
            elif char in string.punctuation and char not in "$+<=>^`|~":
                word += " "
            else:
                word += char
        words += word.split()
    bare = [word for word in words if word not in ("a", "an", "the")]
    return " ".join(bare or words) or text.strip()


TEXTS = st.text("aAnthe .,-'?!$5()", max_size=12)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_the_form_of_exact_is_the_slow_one(text: str) -> None:
    slow = slow_plain(text)
    if slow.strip(string.punctuation + " "):  # what is left of marks alone is the text itself
        assert plain(text) == slow


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=20), st.lists(st.text(max_size=20), min_size=4, max_size=6))
def test_every_metric_is_a_score_of_any_text(answer: str, answers: list[str]) -> None:
    for name in METRICS:
        found = score(name, answer, answers)
        assert isinstance(found, float) and 0 <= found <= 1
        assert found == score(name, answer, answers[::-1])
    assert score("exact", answer, [*answers, answer]) == 1
    assert score("gqa", answer.upper(), [answer.upper()]) == 1
    assert score("vqa", answer, [answer] * 4) == 1


@settings(deadline=None)
@given(
    st.sampled_from(string.ascii_uppercase),
    st.sampled_from(["{}", "({})", "{}.", "{}) x", "Answer: {}"]),
)
def test_a_letter_is_read_in_every_dress(letter: str, dress: str) -> None:
    assert letter_of(dress.format(letter)) == letter


def test_long_answers_take_no_time() -> None:
    for text in (
        "A" * 10**5,
        "a " * 50_000,
        "-" * 10**5,
        "answer " * 20_000,
        "(" * 10**5,
        "." * 10**5,
    ):
        for name in METRICS:
            score(name, text, ["yes"] * 10)


def test_metrics_say_which_answers_they_cannot_use() -> None:
    assert problem("yesno", ("Yes",)) is None and problem("pope", ("no.",)) is None
    assert "yes and no" in str(problem("yesno", ("yes", "maybe")))
    assert (
        "letter" in str(problem("choice", ("2", "dog"))) and problem("choice", ("dog", "c")) is None
    )
    assert (
        "annotators" in str(problem("vqa", ("cat",) * 3)) and problem("vqa", ("cat",) * 4) is None
    )
    with pytest.raises(
        CallError, match=r"unknown metric 'bleu': choose one of exact, contains, vqa"
    ):
        score("bleu", "a", ["a"])
