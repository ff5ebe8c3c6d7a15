"""Chat models by provider: what a configuration section names, connected.

Belongs here: the embedded provider beside the remote ones, and what identifies a provider beside
the model's name. Does not belong here: which client speaks to which server (`serving.models.remote`
serves production too), caching and budgets (`chat_models`), prompts.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from serving.models.concessions import StructuredOutput
from serving.models.protocols import ChatModel, Embedder, Price
from serving.models.remote import Provider, connect_remote

if TYPE_CHECKING:
    from fastapi import FastAPI


def identify_provider(
    *,
    provider: Provider,
    base_url: str | None,
    embedder: "Callable[[], Embedder]",
    top_logprobs: int = 0,
) -> str:
    """Return what decides an answer beside the model's name: who serves it, or what it is made of.

    Args:
        provider: as in the configuration.
        base_url: of a remote server; two servers may give one name to two models.
        embedder: asked only for `extractive`, whose answers are decided by vectors and by code.
        top_logprobs: logprobs belong to the very text they came with, so an answer that was bought
            without them is not one that has them.
    """
    if provider == "extractive":
        from serving.models.extractive import EXTRACTIVE_VERSION

        return f"{provider} {EXTRACTIVE_VERSION} {embedder().fingerprint}"
    wanted = f" top_logprobs {top_logprobs}" if top_logprobs else ""
    return f"{provider} {(base_url or '').rstrip('/')}{wanted}"


def connect_chat_model(
    *,
    provider: Provider,
    model: str,
    base_url: str | None,
    api_key: str | None,
    price: Price,
    timeout_seconds: float,
    embedded_app: "Callable[[], FastAPI]",
    top_logprobs: int = 0,
    structured_output: StructuredOutput = "json_schema",
) -> ChatModel:
    """Return the chat model a config section names.

    `extractive` is the embedded teacher behind its ASGI app, spoken to by the same client as an
    OpenAI-compatible server. A remote client does not retry: `pacing` does, with more patience.
    """
    if provider == "extractive":
        from serving.models.openai_chat import connect_in_process  # openai loads in a second

        return connect_in_process(
            embedded_app(), model=model, price=price, timeout_seconds=timeout_seconds
        )
    return connect_remote(
        provider=provider,
        model=model,
        base_url=base_url,
        api_key=api_key,
        price=price,
        timeout_seconds=timeout_seconds,
        retries=0,
        top_logprobs=top_logprobs,
        structured_output=structured_output,
    )
