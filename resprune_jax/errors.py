"""The errors a user can meet, and how the library says something once."""

import logging

logger = logging.getLogger("resprune_jax")

_SAID: set[str] = set()


class ResPruneError(Exception):
    """Base of every error this project raises on purpose; its message is one clear line."""


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
        key: what the message is about; later messages with the same key are dropped.
        message: one line for the user.
    """
    if key not in _SAID:
        _SAID.add(key)
        logger.warning(message)


def one_of(what: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a name that is not among the choices.

    Raises:
        CallError: naming what was given and what there is.
    """
    if value not in choices:
        raise CallError(f"unknown {what} {value!r}: choose one of {', '.join(choices)}")
