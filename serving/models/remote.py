"""Which client speaks to which kind of server: the one place where a provider's name is read.

The factory and the server connect through it, so that a teacher that can be configured can be
served. Belongs here: choosing. Does not belong here: what a client sends, the embedded models.
"""

from typing import Literal

from serving.hashing import content_hash
from serving.models.concessions import StructuredOutput
from serving.models.protocols import ChatModel, Price

RemoteProvider = Literal["openai", "vllm", "anthropic"]
"""`openai`: any server that speaks chat completions; `vllm`: one that can also score given tokens;
`anthropic`: any server that speaks the Messages API, which has no logprobs."""

Provider = Literal["extractive", "openai", "vllm", "anthropic"]
"""`extractive` is embedded: it quotes the sources and calls nobody."""

NEEDS_BASE_URL: frozenset[str] = frozenset({"openai", "vllm"})
SERVES_ADAPTERS: frozenset[str] = frozenset({"openai", "vllm"})
"""Servers that may hold LoRA adapters on one base, each asked for as a model by its own name."""
OFFERS_LOGPROBS: frozenset[str] = frozenset({"openai", "vllm"})


def hash_remote_model(provider: str, model: str, base_url: str | None) -> str:
    """Return the identity of what the owner says is served: weights behind a server have no hash.

    Two servers may give one name to two models.
    """
    return content_hash(provider, model, (base_url or "").rstrip("/"), digits=64)


def connect_remote(
    *,
    provider: RemoteProvider,
    model: str,
    base_url: str | None,
    api_key: str | None,
    price: Price,
    timeout_seconds: float,
    retries: int = 1,
    top_logprobs: int = 0,
    structured_output: StructuredOutput = "json_schema",
    is_served: bool = False,
) -> ChatModel:
    """Return the client of a remote model; its SDK is imported here, when it is needed.

    With `is_served` its calls cost less CPU; it is for one event loop, and has to be closed.

    Raises:
        InvalidInputError: `base_url` is no URL this provider can be asked at.
    """
    transport = None
    if is_served:
        from serving.models.served_transport import ServedTransport

        transport = ServedTransport()
    if provider == "anthropic":
        from serving.models.anthropic_chat import connect_anthropic

        return connect_anthropic(
            base_url,
            api_key,
            model=model,
            price=price,
            timeout_seconds=timeout_seconds,
            retries=retries,
            structured_output=structured_output,
            transport=transport,
        )
    from serving.models.openai_chat import connect

    return connect(
        base_url or "",
        api_key,
        model=model,
        price=price,
        timeout_seconds=timeout_seconds,
        retries=retries,
        top_logprobs=top_logprobs,
        structured_output=structured_output,
        transport=transport,
    )
