"""The API's reference: what OpenAPI shows of problems and keys.

Belongs here: examples, and what several routes refer to. Does not belong here: the catalogue of
problems (`problems`), what a route says of itself (`app`).
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serving.problems import CATALOGUE, EXPECTED_BODY
from serving.schemas import (
    MAXIMUM_QUESTION_CHARS,
    PROBLEM_MEDIA_TYPE,
    PROBLEM_PREFIX,
    STREAM_EVENTS,
    Problem,
    ProblemName,
)

_COMPONENT = "#/components/schemas/{model}"

_EXAMPLES: Mapping[ProblemName, tuple[str, str, str]] = {
    "invalid-request": (
        EXPECTED_BODY,
        f"question: 1..{MAXIMUM_QUESTION_CHARS} characters are expected, found 0",
        "Mend what is named and send the request again.",
    ),
    "unauthenticated": (
        "Authorization: Bearer us_<id>_<secret> with a valid key",
        "no Authorization header",
        "Send a key; operators make one with `understudy keys create`.",
    ),
    "not-allowed": (
        "a key with the scope ask",
        "scopes feedback:write",
        "Ask the operator of this server for a key with that scope.",
    ),
    "over-quota": (
        "at most 120 requests per minute for this key",
        "one more",
        "Wait as Retry-After says, or ask the operator for a larger quota.",
    ),
    "too-large": (
        "a body of at most 65536 bytes",
        "a larger one",
        "Send a shorter question or comment.",
    ),
    "not-stored": ("a disk that takes the feedback", "one that does not", "Send it again later."),
    "not-ready": (
        "a release that is loaded and warm",
        "the release is still warming up",
        "Ask /readyz until it answers 200.",
    ),
    "overloaded": (
        "fewer than 32 questions at once",
        "32 being answered",
        "Wait as Retry-After says, then try again.",
    ),
    "deadline-exceeded": (
        "an answer within the deadline",
        "none after 60 s",
        "Try again; if it stays, ask something shorter.",
    ),
    "upstream-failed": ("an answer of the model", "UpstreamError", "Try again in a moment."),
    "internal-error": (
        "an answer",
        "RuntimeError",
        "Give the operator of this server the instance id.",
    ),
}
"""What the API's reference shows of each, as the server words it."""


_TRACE_ID = {"description": "The id of this request.", "schema": {"type": "string"}}
TRACE_PERSISTED = {
    "description": "`true` only when the trace is on disk.",
    "schema": {"type": "string", "enum": ["true", "false"]},
}
_RETRY_AFTER = {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
_CHALLENGE = {"description": "`Bearer`, with the realm.", "schema": {"type": "string"}}
_HEADERS: Mapping[int, Mapping[str, object]] = {
    401: {"WWW-Authenticate": _CHALLENGE},
    429: {"Retry-After": _RETRY_AFTER},
    502: {"Retry-After": _RETRY_AFTER | {"description": "Seconds to wait, where they are known."}},
    503: {"Retry-After": _RETRY_AFTER},
}
_TRACED = frozenset({429, 500, 502, 503, 504})
"""Statuses of questions that may have been asked already, and then have a trace."""


def describe_problems(
    *names: ProblemName, is_traced: bool = False
) -> dict[int | str, dict[str, object]]:
    """Return the OpenAPI responses of a route that can end in these problems.

    `is_traced`: once a question is taken its problem says whether the trace is on disk.
    """
    described: dict[int | str, dict[str, object]] = {}
    gathered: dict[int, dict[object, object]] = {}
    for name in names:
        status, title = CATALOGUE[name]
        known = described.get(status)
        examples: dict[object, object] = {name: {"summary": title, "value": _write_example(name)}}
        described[status] = {
            "description": f"{known['description']}; or {title.lower()}" if known else title,
            "headers": _describe_headers(status, is_traced=is_traced),
            "content": {
                PROBLEM_MEDIA_TYPE: {
                    "schema": {"$ref": f"#/components/schemas/{Problem.__name__}"},
                    "examples": gathered.setdefault(status, {}) | examples,
                }
            },
        }
        gathered[status] |= examples
    return described


def _describe_headers(status: int, *, is_traced: bool) -> dict[str, object]:
    headers: dict[str, object] = {"X-Trace-Id": _TRACE_ID, **_HEADERS.get(status, {})}
    if is_traced and status in _TRACED:
        text = "`true` only when the trace is on disk; absent where the question was not taken."
        headers["X-Trace-Persisted"] = TRACE_PERSISTED | {"description": text}
    return headers


def describe_stream() -> dict[str, object]:
    """Return what OpenAPI says of a streamed answer: a text of events, and the data of each."""
    return {
        "schema": {"type": "string"},
        "example": 'event: draft\ndata: {"text":"Put them in .env. "}\n\n'
        'event: answer\ndata: {"answer":"Put them in .env. '
        '[docs:guides/environment-variables/2]", … }\n\n',
        "x-events": {
            name: {"$ref": _COMPONENT.format(model=event.__name__)}
            for name, event in STREAM_EVENTS.items()
        },
    }


def complete_reference(described: dict[str, Any]) -> dict[str, Any]:
    """Add to an OpenAPI document what its routes refer to: problems, a stream's events, the key."""
    components = described["components"]
    models: list[type[BaseModel]] = [Problem, *STREAM_EVENTS.values()]
    referred: list[tuple[type[BaseModel], Literal["serialization"]]] = [
        (model, "serialization") for model in models
    ]
    _, defined = models_json_schema(referred, ref_template=_COMPONENT)
    components["schemas"] |= defined["$defs"]
    components["securitySchemes"] = {
        "key": {
            "type": "http",
            "scheme": "bearer",
            "description": "A key `us_…` with the scope of the route. An open server wants none.",
        }
    }
    for operations in described["paths"].values():
        for operation in operations.values():
            if "401" in operation["responses"]:
                operation["security"] = [{"key": []}, {}]
    return described


def _write_example(name: ProblemName) -> dict[str, object]:
    """Return a document as the reference shows it."""
    status, title = CATALOGUE[name]
    expected, found, next_step = _EXAMPLES[name]
    return Problem(
        type=PROBLEM_PREFIX + name,
        title=title,
        status=status,
        detail=f"Expected {expected}; found {found}.",
        expected=expected,
        found=found,
        next_step=next_step,
        instance="01971b7c-5d2e-7c3a-9f1b-2a4c6e8d0f12",
    ).model_dump()
