"""A teacher's answer as the ids a student has to produce, and the identity of (prompt, answer) ids.

Labels are scored and students are trained on the same ids. Belongs here: answer ids, the citation
mask, the token hash. Does not belong here: prompt ids (`serving.models.chat_tokens`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serving.errors import InvalidInputError
from serving.hashing import content_hash
from serving.models.chat_tokens import defuse_special_tokens
from serving.pipeline.prompt import CITATION_PATTERN


@dataclass(frozen=True, kw_only=True)
class AnswerTokens:
    """Ids of an answer, end-of-turn last; `cite_mask` is true inside `[2]` and `[docs:…]` spans."""

    ids: tuple[int, ...]
    cite_mask: tuple[bool, ...]


def encode_answer(tokenizer: Any, completion: str) -> AnswerTokens:
    """Tokenise an answer apart from its prompt and end the turn.

    Raises:
        InvalidInputError: the answer is empty.
    """
    text = defuse_special_tokens(tokenizer, completion)
    if not text.strip():
        raise InvalidInputError(
            "tokenising a teacher's answer",
            expected="some text",
            found=repr(completion),
            next_step="reject empty answers in labels/judged_answers",
        )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = [match.span() for match in CITATION_PATTERN.finditer(text)]
    mask = [
        any(start < stop_at and end > start_at for start_at, stop_at in spans)
        for start, end in encoded["offset_mapping"]
    ]
    return AnswerTokens(
        ids=(*encoded["input_ids"], tokenizer.eos_token_id), cite_mask=(*mask, False)
    )


def token_hash(fingerprint: str, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> str:
    """Return the identity under which logprobs of these very ids are found again."""
    return content_hash(fingerprint, list(prompt_ids), list(answer_ids))
