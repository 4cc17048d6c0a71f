"""The judge of the pocket test set: whether an answer is the right one."""

_DIGITS = {"zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}


def is_right(text: str, answer: str) -> bool:
    """Whether an answer is the right one: case and blanks aside, and "two" is "2".

    Args:
        text: what the model said.
        answer: `Question.answer`.
    """
    said = text.strip().lower()
    return _DIGITS.get(said, said) == answer
