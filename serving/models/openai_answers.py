"""Reading what a chat completions server answered: whole, or piece by piece.

Belongs here: from its JSON to a `Completion`, and what is missing in them. Does not belong
here: sending, retrying, explaining failures (`openai_chat`, `asking`).
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from openai import AsyncStream

from serving.errors import InvalidInputError, UpstreamRejectedError
from serving.models.protocols import Completion, Price, TokenLogprob

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
        UpstreamRejectedError: it holds no text, or no usage.
        InvalidInputError: it holds no logprobs although they were asked for.
    """
    choice = answer["choices"][0] if answer["choices"] else None
    text = _get(_get(choice, "message"), "content")
    usage = _get(answer, "usage")
    counts = _get(usage, "prompt_tokens"), _get(usage, "completion_tokens")
    if not isinstance(text, str) or None in counts:
        missing = "usage" if None in counts else "text"
        rejection = UpstreamRejectedError(
            f"reading the answer of {name}",
            expected="one choice with text, and token usage",
            found=f"no {missing} (finish_reason {_get(choice, 'finish_reason')})",
            next_step="use a server that reports usage, and look at what the model refused",
        )
        rejection.may_be_billed = True  # the prompt was read
        raise rejection
    tokens = _get(_get(choice, "logprobs"), "content")
    if top_logprobs and text and not tokens:
        raise _no_logprobs(name, top_logprobs)
    return Completion(
        text=text,
        model=name,
        prompt_tokens=counts[0],
        completion_tokens=counts[1],
        finish_reason=_get(choice, "finish_reason"),
        latency_ms=latency_ms,
        first_token_ms=first_token_ms,
        cost_usd=price.cost_usd(*counts),
        mean_logprob=_mean_logprob(tokens),
        logprobs=_keep_logprobs(tokens) if top_logprobs and tokens else None,
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
            for choice in (_get(chunk, "choices") or [])[:1]:
                finish_reason = _get(choice, "finish_reason") or finish_reason
                tokens += _get(_get(choice, "logprobs"), "content") or []
                piece = _get(_get(choice, "delta"), "content")
                if isinstance(piece, str) and piece:
                    parts.append(piece)
                    on_text(piece)
    if finish_reason is None:
        raise ValueError("a stream that broke off before its finish_reason")
    choice = {
        "message": {"content": "".join(parts)},
        "finish_reason": finish_reason,
        "logprobs": {"content": tokens},
    }
    return {"choices": [choice], "usage": usage}


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


def _mean_logprob(tokens: "list[Any] | None") -> float | None:
    return sum(token["logprob"] for token in tokens) / len(tokens) if tokens else None


def _keep_logprobs(tokens: "list[Any]") -> list[TokenLogprob]:
    return [
        {
            "token": token["token"],
            "bytes": token.get("bytes"),
            "logprob": token["logprob"],
            "top": [
                {"token": top["token"], "bytes": top.get("bytes"), "logprob": top["logprob"]}
                for top in token.get("top_logprobs") or ()
            ],
        }
        for token in tokens
    ]
