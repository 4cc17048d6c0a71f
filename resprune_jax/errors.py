"""The errors a user can meet, and how the library says something once."""

import logging
import re

logger = logging.getLogger("resprune_jax")

_SAID: set[str] = set()

MOST_SAID = 1000
"""Different things that are said once; whoever asks a server could make it say more without end."""

LONGEST = 450
"""Characters of an error's longest message: with what a command adds, a line has at most 500."""

_BREAKS = re.compile(r" *[^\S ]\s*")


def printable(text: str, longest: int = LONGEST) -> str:
    """Make a line of any text that is safe to print: names and values come from anywhere.

    Args:
        text: what is to be said. Breaks of a line, with the blanks around them, become a blank;
            what cannot be printed (control characters, halves of surrogate pairs) is escaped.
        longest: characters of the result; of a longer text its middle is left out, since the end
            mostly says what to do.

    Returns:
        One line of printable characters.
    """
    if len(text) > 4 * longest:  # before anything else: a message may be a whole file
        text = text[: 2 * longest] + text[-2 * longest :]
    line = _BREAKS.sub(" ", text).strip()
    if not line.isprintable():
        line = "".join(
            char if char.isprintable() else char.encode("unicode_escape").decode() for char in line
        )
    if len(line) <= longest:
        return line
    end = longest // 3
    return f"{line[: longest - end - 5]} ... {line[len(line) - end :]}"


class ResPruneError(Exception):
    """Base of every error this project raises on purpose.

    Args:
        message: what was given, what was expected and what to do; it is made one printable line
            of at most `LONGEST` characters, whatever it quotes.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))


class CallError(ResPruneError, ValueError):
    """A wrong call: an argument that cannot work, found before anything is compiled or run.

    The commands turn it into exit status 2.
    """


class RunError(ResPruneError, RuntimeError):
    """A right call that failed while running: a broken file, a model output that is not finite.

    The commands turn it into exit status 1.
    """


def say_once(key: str, message: str) -> None:
    """Log `message` as a warning the first time `key` is seen in this process.

    Args:
        key: what the message is about; later messages with the same key are dropped. There are
            `MOST_SAID` keys at most; what comes behind them is not said, which is said once.
        message: one line for the user.
    """
    if key not in _SAID and len(_SAID) <= MOST_SAID:
        _SAID.add(key)
        if len(_SAID) > MOST_SAID:
            message = f"{MOST_SAID} different warnings were given: there will be no further ones"
        logger.warning("%s", printable(message))


def one_of(what: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a name that is not among the choices.

    Raises:
        CallError: naming what was given and what there is.
    """
    if not isinstance(value, str) or value not in choices:
        raise CallError(f"unknown {what} {shown(value)}: choose one of {', '.join(choices)}")


def shown(value: object, longest: int = 80) -> str:
    """How a message quotes a value that was given: as Python writes it, and not too long."""
    try:
        text = repr(value)
    except Exception:  # a whole number of thousands of digits, an object whose repr fails
        text = f"a {type(value).__name__}"
    return printable(text, longest)
