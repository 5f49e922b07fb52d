"""What goes wrong with a request, in the shape that OpenAI's API gives it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: A client's words are quoted in messages up to this many characters.
QUOTED = 80


class ApiError(Exception):
    """A request that gets no answer.

    Parameters
    ----------
    status : HTTP status.
    message : one line that names the field, what was expected and what to do.
    param : the field; None where there is none to blame.
    code : OpenAI's word for the problem, where it has one.
    headers : of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def kind(self) -> str:
        """OpenAI's `type` of an error with this status."""
        special = {401: "authentication_error", 429: "rate_limit_error"}
        return special.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def body(self) -> dict[str, Any]:
        """The JSON object of the response."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}


def bad_request(param: str, problem: str, code: str | None = None) -> ApiError:
    """A 400 that blames one field."""
    return ApiError(400, f"{param}: {problem}", param, code)


def quoted(value: object) -> str:
    """A client's value for a message, cut to a readable length."""
    if isinstance(value, int) and abs(value) > 10**QUOTED:
        return "a number of more than 80 digits"
    try:
        text = repr(value)
    except RecursionError:
        return "a deeply nested value"
    return text if len(text) <= QUOTED else text[:QUOTED] + "..."


def shutting_down() -> ApiError:
    """What a request gets that the server's end cuts off."""
    return ApiError(503, "the server is shutting down; ask again later", code="shutting_down")
