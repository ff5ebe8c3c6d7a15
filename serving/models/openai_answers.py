"""Reading what a chat completions server answered: whole, or piece by piece.

Belongs here: from its JSON to a `Completion`, and what is missing in them. Does not belong
here: sending, retrying, explaining failures (`openai_chat`, `asking`).
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from openai import AsyncStream

from serving.errors import InvalidInputError, UpstreamRejectedError
from serving.models.protocols import Completion, Price, TokenLogprob, TopLogprob
from serving.models.usage import read_token_count

Answer = Mapping[str, Any]
"""A chat completion as its JSON says it: the SDK's types would be filled for a few fields of it."""


def read_completion(
    answer: Answer,
    *,
    name: str,
    price: Price,
    latency_ms: float,
    first_token_ms: float | None = None,
    top_logprobs: int = 0,
) -> Completion:
    """Return the completion of a server's answer.

    Raises:
        UpstreamRejectedError: it holds no text, or no usage in whole tokens.
        InvalidInputError: it holds no logprobs although they were asked for.
    """
    choice = _first(answer["choices"])
    text = _get(_get(choice, "message"), "content")
    usage = _get(answer, "usage")
    prompt_tokens = read_token_count(_get(usage, "prompt_tokens"))
    completion_tokens = read_token_count(_get(usage, "completion_tokens"))
    if not isinstance(text, str) or prompt_tokens is None or completion_tokens is None:
        missing = "text" if not isinstance(text, str) else "usage"
        rejection = UpstreamRejectedError(
            f"reading the answer of {name}",
            expected="one choice with text, and token usage",
            found=f"no {missing} (finish_reason {_get(choice, 'finish_reason')})",
            next_step="use a server that reports usage, and look at what the model refused",
        )
        rejection.may_be_billed = True  # the prompt was read
        raise rejection
    said = _get(_get(choice, "logprobs"), "content")
    if top_logprobs and text and not said:
        raise _no_logprobs(name, top_logprobs)
    tokens = _read_logprobs(said)
    return Completion(
        text=text,
        model=name,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        finish_reason=_get(choice, "finish_reason"),
        latency_ms=latency_ms,
        first_token_ms=first_token_ms,
        cost_usd=price.cost_usd(prompt_tokens, completion_tokens),
        mean_logprob=_mean_logprob(tokens),
        logprobs=tokens if top_logprobs and tokens else None,
    )


def read_refusal(content: bytes) -> tuple[str, str | None]:
    """Return what a server says of a call it did not answer, and what it calls the reason.

    A body of another shape is not shown: it may repeat the question.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return "", None
    error = _get(body, "error") or body
    message, code = _get(error, "message"), _get(error, "code")
    return message if isinstance(message, str) else "", code if isinstance(code, str) else None


async def join_chunks(stream: AsyncStream[object], on_text: Callable[[str], None]) -> Answer:
    """Read a stream to its end and return the answer it adds up to; hand on each piece of text."""
    parts: list[str] = []
    tokens: list[Any] = []
    usage: object = None
    finish_reason: str | None = None
    async with stream:
        async for chunk in stream:
            usage = _get(chunk, "usage") or usage
            choice = _first(_get(chunk, "choices"))
            finish_reason = _get(choice, "finish_reason") or finish_reason
            said = _get(_get(choice, "logprobs"), "content")
            tokens += said if isinstance(said, list) else []
            piece = _get(_get(choice, "delta"), "content")
            if isinstance(piece, str) and piece:
                parts.append(piece)
                on_text(piece)
    if finish_reason is None:
        raise ValueError("a stream that broke off before its finish_reason")
    whole = {
        "message": {"content": "".join(parts)},
        "finish_reason": finish_reason,
        "logprobs": {"content": tokens},
    }
    return {"choices": [whole], "usage": usage}


def _get(value: object, key: str) -> Any:
    """Return a field of an object that the server may have left out, or sent as something else."""
    return value.get(key) if isinstance(value, dict) else None


def _no_logprobs(name: str, top_logprobs: int) -> InvalidInputError:
    """Return the error of a setting, not of a question: every further answer lacks them too.

    No `ModelError`, which would cost one question its row while the next answers are bought.
    """
    return InvalidInputError(
        f"reading the answer of {name}",
        expected=f"the {top_logprobs} most likely tokens at each position, as asked for",
        found="no logprobs",
        next_step="set top_logprobs to 0, or use a server that offers them",
    )


def _first(value: object) -> Any:
    """Return the first entry of a list; None where it is empty, or no list."""
    return value[0] if isinstance(value, list) and value else None


def _mean_logprob(tokens: "list[TokenLogprob] | None") -> float | None:
    return sum(token["logprob"] for token in tokens) / len(tokens) if tokens else None


def _read_logprobs(said: object) -> "list[TokenLogprob] | None":
    """Return the logprobs of an answer; None where one is missing or no number.

    An answer without them is still an answer: a student's is served, and a teacher's, which was
    paid for, is learned from without soft targets.
    """
    try:
        return _keep_logprobs(said) if isinstance(said, list) else None
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _keep_logprobs(tokens: "list[Any]") -> list[TokenLogprob]:
    return [
        {
            **_read_token(token),
            # Minus infinity of a candidate is no candidate.
            "top": [_read_token(t) for t in token.get("top_logprobs") or () if _is_likely(t)],
        }
        for token in tokens
    ]


def _is_likely(said: Mapping[str, Any]) -> bool:
    return bool(said["logprob"] != -math.inf)


def _read_token(said: Mapping[str, Any]) -> TopLogprob:
    logprob = said["logprob"]
    if not math.isfinite(logprob):
        raise ValueError(f"a logprob of {logprob}")
    return {"token": said["token"], "bytes": said.get("bytes"), "logprob": logprob}
