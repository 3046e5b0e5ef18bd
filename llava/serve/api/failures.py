"""Errors as OpenAI's clients read them: a status, and a body with a sentence, a type, a code and the field at fault."""

from __future__ import annotations

from typing import Any

INVALID, AUTHENTICATION, NOT_FOUND = "invalid_request_error", "authentication_error", "not_found_error"
OVERLOADED, FAILED = "rate_limit_error", "server_error"


class ApiError(Exception):
    """A request that gets no answer.

    Args:
        status: status of HTTP.
        message: a sentence: the value, what is accepted, what to change.
        kind: one of OpenAI's types of errors.
        param: field of the request, such as `messages[0].content[1].image_url`.
        code: a word for programs.
        retry_after: seconds after which the same request may get an answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """The body of the reply."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Headers of the reply."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def refused(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that no server of this model would answer."""
    return ApiError(400, message, INVALID, param, code)


def ending() -> ApiError:
    """What is answered while the server ends."""
    return ApiError(503, "The server is ending and takes no new requests; ask again later.", FAILED, None, "ending", 10)


def overtime(seconds: float) -> ApiError:
    """A request that took too long."""
    message = (
        f"The request was not answered within {seconds:g} seconds, which is the most it may take here; ask for less."
    )
    return ApiError(504, message, FAILED, None, "timeout")
