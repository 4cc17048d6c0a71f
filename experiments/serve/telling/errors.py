"""What a request is refused or failed with: a status and OpenAI's JSON form of an error."""

from typing import Any

from resprune_jax.errors import CallError, RunError, printable

REQUEST, AUTHENTICATION, LIMIT, SERVER = (
    "invalid_request_error", "authentication_error", "rate_limit_error", "server_error",
)  # fmt: skip


class RequestError(Exception):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        message: one line: what was given, what was expected and what to do.
        kind: OpenAI's `type`.
        code: OpenAI's `code`, a short name that programs can tell it by.
        param: the field of the request that it is about.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = REQUEST,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = printable(message)
        self.kind = kind
        self.code = code
        self.param = param
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """The JSON object that the client gets."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


def wrong(message: str, param: str | None = None, code: str | None = None) -> RequestError:
    """A request that can never be answered as it is: 400."""
    return RequestError(400, message, param=param, code=code)


def unknown_model(name: str, served: str) -> RequestError:
    """A model that is not served here: 404."""
    return RequestError(
        404, f"The model '{name}' does not exist here: this server has '{served}'",
        param="model", code="model_not_found",
    )  # fmt: skip


def full(message: str) -> RequestError:
    """More than this server holds at a time: 429, and when to ask again."""
    return RequestError(429, message, kind=LIMIT, code="server_full", headers={"retry-after": "1"})


def too_large(message: str) -> RequestError:
    """A body beyond the limit: 413."""
    return RequestError(413, message, code="request_too_large")


def timed_out(seconds: float) -> RequestError:
    """No answer in time: 504."""
    return RequestError(
        504, f"no answer within {seconds:g} s: ask for fewer tokens, or ask again later",
        kind=SERVER, code="timeout",
    )  # fmt: skip


def broken(message: str) -> RequestError:
    """What went wrong here: 500."""
    return RequestError(500, message, kind=SERVER, code="internal_error")


def closing() -> RequestError:
    """A request that came while the server stops: 503."""
    return RequestError(
        503, "this server is shutting down", kind=SERVER, code="shutting_down",
        headers={"retry-after": "5"},
    )  # fmt: skip


def of_error(error: BaseException, param: str | None = None) -> RequestError:
    """What an error of the library means for whoever asked."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, CallError):
        text = str(error)
        long = "context" in text and "tokens" in text
        return wrong(text, param, "context_length_exceeded" if long else None)
    if isinstance(error, RunError):
        return broken(str(error))
    return broken(f"unexpected {type(error).__name__}")
