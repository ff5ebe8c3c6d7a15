"""Reading what a chat completions server answered: whole, or piece by piece.

Belongs here: from the SDK's shapes to a `Completion`, and what is missing in them. Does not belong
here: sending, retrying, explaining failures (`openai_chat`, `asking`).
"""

from collections.abc import Callable
from typing import Any

from openai import AsyncStream
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice, ChoiceLogprobs

from serving.errors import InvalidInputError, UpstreamRejectedError
from serving.models.protocols import Completion, Price, TokenLogprob


def read_completion(
    answer: ChatCompletion,
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
    choice = answer.choices[0] if answer.choices else None
    text = getattr(getattr(choice, "message", None), "content", None)
    usage = getattr(answer, "usage", None)
    if choice is None or not isinstance(text, str) or usage is None:
        missing = "text" if usage is not None else "usage"
        rejection = UpstreamRejectedError(
            f"reading the answer of {name}",
            expected="one choice with text, and token usage",
            found=f"no {missing} (finish_reason {getattr(choice, 'finish_reason', 'none')})",
            next_step="use a server that reports usage, and look at what the model refused",
        )
        rejection.may_be_billed = True  # the prompt was read
        raise rejection
    tokens = choice.logprobs.content if choice.logprobs else None
    if top_logprobs and text and not tokens:
        raise _no_logprobs(name, top_logprobs)
    return Completion(
        text=text,
        model=name,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        finish_reason=choice.finish_reason,
        latency_ms=latency_ms,
        first_token_ms=first_token_ms,
        cost_usd=price.cost_usd(usage.prompt_tokens, usage.completion_tokens),
        mean_logprob=_mean_logprob(tokens),
        logprobs=_keep_logprobs(tokens) if top_logprobs and tokens else None,
    )


async def join_chunks(
    stream: AsyncStream[ChatCompletionChunk], on_text: Callable[[str], None]
) -> ChatCompletion:
    """Read a stream to its end and return the answer it adds up to; hand on each piece of text."""
    parts: list[str] = []
    tokens: list[Any] = []
    usage: object = None
    finish_reason: str | None = None
    async with stream:
        async for chunk in stream:
            usage = getattr(chunk, "usage", None) or usage
            for choice in (getattr(chunk, "choices", None) or [])[:1]:
                finish_reason = choice.finish_reason or finish_reason
                if choice.logprobs and choice.logprobs.content:
                    tokens += choice.logprobs.content
                piece = getattr(choice.delta, "content", None)
                if isinstance(piece, str) and piece:
                    parts.append(piece)
                    on_text(piece)
    if finish_reason is None:
        raise ValueError("a stream that broke off before its finish_reason")
    return ChatCompletion.model_construct(
        choices=[
            Choice.model_construct(
                index=0,
                message=ChatCompletionMessage.model_construct(
                    role="assistant", content="".join(parts)
                ),
                finish_reason=finish_reason,
                logprobs=ChoiceLogprobs.model_construct(content=tokens) if tokens else None,
            )
        ],
        usage=usage,
    )


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
    return sum(token.logprob for token in tokens) / len(tokens) if tokens else None


def _keep_logprobs(tokens: "list[Any]") -> list[TokenLogprob]:
    return [
        {
            "token": token.token,
            "bytes": token.bytes,
            "logprob": token.logprob,
            "top": [
                {"token": top.token, "bytes": top.bytes, "logprob": top.logprob}
                for top in token.top_logprobs
            ],
        }
        for token in tokens
    ]
