"""Problem documents (RFC 9457): the one shape of everything that is not an answer.

Belongs here: the catalogue of problems, raising and rendering them. Does not belong here: deciding
that a request has one (`app`). Nothing of an upstream's message or of the request is echoed.
"""

import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from serving.errors import BudgetExceededError, DeadlineExceededError, ModelError
from serving.schemas import (
    MAXIMUM_QUESTION_CHARS,
    PROBLEM_MEDIA_TYPE,
    PROBLEM_PREFIX,
    Problem,
    ProblemName,
)

CATALOGUE: Mapping[ProblemName, tuple[int, str]] = {
    "invalid-request": (422, "The request is not valid"),
    "unauthenticated": (401, "A valid key is needed"),
    "over-quota": (429, "The quota of this key is used up"),
    "not-stored": (503, "It could not be stored"),
    "not-allowed": (403, "This is not allowed here"),
    "not-found": (404, "There is nothing at this address"),
    "method-not-allowed": (405, "This address does not take that method"),
    "too-large": (413, "The request is too large"),
    "not-ready": (503, "The server is not ready"),
    "overloaded": (503, "The server is at capacity"),
    "deadline-exceeded": (504, "No answer before the deadline"),
    "upstream-failed": (502, "The model behind this server failed"),
    "internal-error": (500, "Something went wrong in this server"),
}
EXPECTED_BODY = (
    f"a JSON object with question (1..{MAXIMUM_QUESTION_CHARS} characters), and optionally "
    "prefer_quality (true or false), conversation_id and skill (text or null)"
)
_BY_STATUS: Mapping[int, ProblemName] = {
    404: "not-found",
    405: "method-not-allowed",
    413: "too-large",
}
_SHOWN_ERRORS = 5


class ProblemError(Exception):
    """A request cannot be answered, and this is what the user is told."""

    def __init__(
        self,
        name: ProblemName,
        *,
        expected: str,
        found: str,
        next_step: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Say in three parts what happened; `headers` go out with the document."""
        super().__init__(name, found)
        self.name = name
        self.expected = expected
        self.found = found
        self.next_step = next_step
        self.headers = dict(headers or {})


def write_problem(error: ProblemError, trace_id: str) -> Response:
    """Return the problem document as a response."""
    status, title = CATALOGUE[error.name]
    problem = Problem(
        type=PROBLEM_PREFIX + error.name,
        title=title,
        status=status,
        detail=f"Expected {error.expected}; found {error.found}.",
        expected=error.expected,
        found=error.found,
        next_step=error.next_step,
        instance=trace_id,
    )
    headers = {**error.headers, "X-Trace-Id": trace_id}
    return JSONResponse(
        problem.model_dump(), status, headers=headers, media_type=PROBLEM_MEDIA_TYPE
    )


def explain_model_error(error: ModelError) -> ProblemError:
    """Return the problem of a failed model. Its message stays in the log: it may hold secrets."""
    if isinstance(error, DeadlineExceededError):
        return deadline_exceeded("the model's deadline passed")
    if isinstance(error, BudgetExceededError):
        return ProblemError(
            "over-quota",
            expected="a question within the budget of the expensive model",
            found="a budget that is used up",
            next_step="Ask again later, or ask the operator for a larger budget.",
            headers={"Retry-After": str(error.retry_after_seconds or 60)},
        )
    wait = getattr(error, "retry_after_seconds", None)
    is_retryable = getattr(error, "is_retryable", True)
    return ProblemError(
        "upstream-failed",
        expected="an answer of the model",
        found=type(error).__name__,
        next_step="Try again in a moment." if is_retryable else "Tell the operator of this server.",
        headers={"Retry-After": str(max(1, math.ceil(wait)))} if wait else None,
    )


def deadline_exceeded(found: str) -> ProblemError:
    """Return the problem of a request that took too long."""
    return ProblemError(
        "deadline-exceeded",
        expected="an answer within the deadline",
        found=found,
        next_step="Try again; if it stays, ask something shorter.",
    )


def shutting_down() -> ProblemError:
    """Return the problem of a question that outlasts the drain of a server that stops."""
    return ProblemError(
        "not-ready",
        expected="an answer before the server ends",
        found="a server that is shutting down",
        next_step="Ask again: another server answers, or this one once it is back.",
        headers={"Retry-After": "1"},
    )


def too_large(limit_bytes: int) -> ProblemError:
    """Return the problem of a body over the limit."""
    return ProblemError(
        "too-large",
        expected=f"a body of at most {limit_bytes} bytes",
        found="a larger one",
        next_step="Send a shorter question or comment.",
        headers={"Connection": "close"},
    )


_EXPECTED_FEEDBACK = (
    "a JSON object with trace_id (of the answer), rating (up or down), and optionally comment "
    "(text or null)"
)


def install_problem_handlers(app: FastAPI) -> None:
    """Render every planned error of the app as a problem document; `edge` does the others."""
    app.add_exception_handler(ProblemError, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_exception)


def _on_problem(request: Request, error: Exception) -> Response:
    problem = error if isinstance(error, ProblemError) else unexpected(error)
    return write_problem(problem, request.state.trace_id)


def _on_invalid(request: Request, error: Exception) -> Response:
    errors = error.errors() if isinstance(error, RequestValidationError) else []
    found = "; ".join(
        f"{_name_location(item['loc'])}: {_write_message(item)}" for item in errors[:_SHOWN_ERRORS]
    )
    problem = ProblemError(
        "invalid-request",
        expected=_EXPECTED_FEEDBACK if request.url.path == "/feedback" else EXPECTED_BODY,
        found=found or "another body",
        next_step="Mend what is named and send the request again.",
    )
    return write_problem(problem, request.state.trace_id)


def _write_message(item: Mapping[str, Any]) -> str:
    """Return what is wrong with a field, in words that name no class of ours."""
    if item["type"] in {"model_type", "model_attributes_type"}:
        return "Input should be an object"
    return str(item["msg"]).removeprefix("Value error, ")


def _on_http_exception(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict(getattr(error, "headers", None) or {})
    name = _BY_STATUS.get(status, "invalid-request")
    expected, next_step = EXPECTED_BODY, "Mend the request and send it again."
    if name in ("not-found", "method-not-allowed"):
        expected, next_step = "an address and method listed in /docs", "See /docs."
    problem = ProblemError(
        name,
        expected=expected,
        found=f"{request.method} of another address" if status == 404 else f"status {status}",
        next_step=next_step,
        headers=headers,
    )
    return write_problem(problem, request.state.trace_id)


def unexpected(error: Exception) -> ProblemError:
    """Return the problem of an error nobody planned for: its kind, never its message."""
    return ProblemError(
        "internal-error",
        expected="an answer",
        found=type(error).__name__,
        next_step="Give the operator of this server the instance id.",
    )


def _name_location(location: tuple[int | str, ...]) -> str:
    """Name the field; keys a client made up are shortened and kept printable."""
    parts = [str(p) for p in location if p != "body"]
    return ".".join(ascii(p[:40])[1:-1] for p in parts) or "body"
