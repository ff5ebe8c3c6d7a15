"""Providers: who answers, and what identifies them."""

import pytest

from resources.providers import connect_chat_model, identify_provider
from serving.models.anthropic_chat import AnthropicChatModel
from serving.models.openai_chat import OpenAIChatModel
from serving.models.protocols import Price


def test_a_provider_is_its_address_or_what_it_is_made_of(monkeypatch):
    class Embedder:
        fingerprint = "e1"

    def identify(provider: str, base_url: str | None = None) -> str:
        return identify_provider(provider=provider, base_url=base_url, embedder=Embedder)

    assert identify("openai", "http://a/v1") == identify("openai", "http://a/v1/")
    assert identify("openai", "http://a/v1") != identify("openai", "http://b/v1")
    before = identify("extractive")
    monkeypatch.setattr(Embedder, "fingerprint", "e2")
    other_embedder = identify("extractive")
    monkeypatch.setattr("serving.models.extractive.EXTRACTIVE_VERSION", "next")
    assert len({before, other_embedder, identify("extractive")}) == 3


def test_answers_with_logprobs_are_other_answers_and_without_keep_their_identity():
    def identify(top_logprobs: int) -> str:
        return identify_provider(
            provider="openai", base_url="http://a/v1", embedder=object, top_logprobs=top_logprobs
        )

    assert identify(0) == "openai http://a/v1"
    assert len({identify(0), identify(5), identify(20)}) == 3


@pytest.mark.parametrize(
    ("provider", "kind"),
    [("openai", OpenAIChatModel), ("vllm", OpenAIChatModel), ("anthropic", AnthropicChatModel)],
)
def test_a_section_gets_the_client_of_its_provider_which_leaves_retries_to_the_pace(provider, kind):
    model = connect_chat_model(
        provider=provider,
        model="m-1",
        base_url="http://host.invalid",
        api_key=None,
        price=Price(),
        timeout_seconds=3.0,
        embedded_app=lambda: pytest.fail("no embedded model was asked for"),
        top_logprobs=0 if provider == "anthropic" else 7,
        structured_output="none",
    )
    assert isinstance(model, kind)
    assert (model.retries, model.timeout_seconds) == (0, 3.0)
    assert model.concessions == {"plain_text"}
    assert getattr(model, "top_logprobs", 7) == 7
