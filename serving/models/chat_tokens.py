"""From chat messages to the two runs of token ids a student reads: the prefix and the suffix.

The prefix is everything before the last user message (rules and sources), or before the header of
the answer; the suffix is the rest with the generation prompt. The cut lies on a special token, so
the two runs, encoded apart, are the ids of the whole prompt. Training, scoring and serving all
split here. Belongs here: prompt ids, text made safe to encode, the tokenizer's identity. Does not
belong here: models, answer masks.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from serving.errors import InvalidInputError
from serving.hashing import content_hash
from serving.models.protocols import Message

Activation = Literal["question", "answer", "all"]
"""Where the adapter acts: from the user's question on or from the answer's header on (both aLoRA),
or everywhere (ordinary LoRA)."""


@dataclass(frozen=True, kw_only=True)
class ChatTokens:
    """A prompt's ids. The frozen base reads `prefix_ids`, the adapted model `suffix_ids`."""

    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]

    @property
    def whole(self) -> tuple[int, ...]:
        """The ids of the whole prompt, generation prompt included."""
        return self.prefix_ids + self.suffix_ids

    def __len__(self) -> int:
        """Return the number of prompt tokens."""
        return len(self.prefix_ids) + len(self.suffix_ids)


def split_chat(
    tokenizer: Any, messages: Sequence[Message], *, activation: Activation = "question"
) -> ChatTokens:
    """Tokenise messages with the tokenizer's chat template, split where the last user turn starts.

    With `activation="answer"` the split is where the answer starts; with `"all"` the prefix is
    empty and everything goes through the adapter.

    Raises:
        InvalidInputError: there is no user message, or the template does not open that turn with
            a special token (then ids encoded apart would differ from ids encoded together).
    """
    safe: list[Message] = [
        {"role": m["role"], "content": defuse_special_tokens(tokenizer, m["content"])}
        for m in messages
    ]
    users = [index for index, message in enumerate(safe) if message["role"] == "user"]
    if not users:
        raise InvalidInputError(
            "tokenising a chat request",
            expected="at least one message with role user",
            found=f"roles {[message['role'] for message in safe]}",
            next_step="write requests with serving.pipeline.prompt",
        )
    whole = _render(tokenizer, safe, add_generation_prompt=True)
    if activation == "all":
        return ChatTokens(prefix_ids=(), suffix_ids=_encode(tokenizer, whole))
    before = safe if activation == "answer" else safe[: users[-1]]
    prefix = _render(tokenizer, before, add_generation_prompt=False) if before else ""
    if not whole.startswith(prefix):
        raise _unsplittable(tokenizer, f"the turns before the {activation} to render as a prefix")
    suffix_ids = _encode(tokenizer, whole[len(prefix) :])
    if not suffix_ids or suffix_ids[0] not in _special_tokens(tokenizer).values():
        raise _unsplittable(tokenizer, f"the turn of the {activation} to open with a special token")
    return ChatTokens(prefix_ids=_encode(tokenizer, prefix), suffix_ids=suffix_ids)


def invocation_tokens(tokenizer: Any, activation: Activation = "question") -> list[int]:
    """Return the ids that open the turn: the invocation sequence recorded for aLoRA loaders.

    The header's last token (a line break) is left out: it could merge with a question's first.
    """
    runs = [
        split_chat(
            tokenizer,
            [{"role": "system", "content": "-"}, {"role": "user", "content": text}],
            activation=activation,
        )
        for text in ("-", "=")
    ]
    shared: list[int] = []
    for one, other in zip(runs[0].suffix_ids, runs[1].suffix_ids, strict=False):
        if one != other:
            break
        shared.append(one)
    return shared[:-1] if len(shared) > 1 else shared


def defuse_special_tokens(tokenizer: Any, text: str) -> str:
    """Return the text with a space inside every special token that it spells.

    Without this, a question or a source that contains `<|im_start|>` would open a turn of its own.
    """
    for token in sorted(_special_tokens(tokenizer), key=len, reverse=True):
        if len(token) > 1 and token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a hash of all that decides ids: vocabulary, merges, template, special tokens."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend.pop("truncation", None)  # state of the last call, not identity
    backend.pop("padding", None)
    return content_hash(
        backend, tokenizer.chat_template, _special_tokens(tokenizer), tokenizer.eos_token
    )


def _special_tokens(tokenizer: Any) -> dict[str, int]:
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    added = tokenizer.added_tokens_decoder.items()
    return dict(named) | {str(token): number for number, token in added if token.special}


def _render(tokenizer: Any, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    return str(
        tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    )


def _encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False)) if text else ()


def _unsplittable(tokenizer: Any, expected: str) -> InvalidInputError:
    return InvalidInputError(
        f"splitting the prompt of a {type(tokenizer).__name__}",
        expected=expected,
        found=f"the chat template {str(tokenizer.chat_template)[:120]!r}",
        next_step="train this base model with `kind: lora` (`activation: all`)",
    )
