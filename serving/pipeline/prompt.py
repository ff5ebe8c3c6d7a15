"""The one prompt: how a question and its sources become messages, and a model's text an answer.

Labelling, evaluation and production all use it, so a change here is a new PROMPT_VERSION and with
it new labels. Belongs here: wording, source numbering, the reading of a model's plain-text answer.
Does not belong here: judging whether the answer is acceptable (`validator`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from serving.errors import InvalidInputError
from serving.hashing import content_hash
from serving.models.protocols import ChatRequest, Hit, Message
from serving.pipeline.sentences import split_units

CitationIds = Literal["local", "full"]

REFUSAL_WORD = "REFUSE"
"""The bare answer that means refusal: one short word is learnt at once where JSON flags are not
(DISTILLATION.md section 8)."""

REFUSAL_TEXT = "I could not find this in the documentation"

RULES = (
    "Answer the question only from the sources below. Quote the sentences that answer it and put "
    "the source id after each. If the sources do not answer it, reply {refusal}.\n\nSources:\n"
)

_SOURCES_HEADING = RULES[RULES.rindex("Sources:") :]

PROMPT_WORDING = content_hash(RULES, REFUSAL_WORD, "inline-units-1", digits=8)
"""Moves with the wording and with how sources are written out: labels made by others go stale."""

CITATION_PATTERN = re.compile(r"\[(?P<id>docs:[^\[\]\s]+|\d{1,3})\]")
"""A citation as a model writes it: `[2]` (local) or `[docs:guides/setup/3]` (full)."""


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """How sources are numbered for the model: `local` ([1]..[k]) or `full` (docs ids)."""

    citation_ids: CitationIds = "local"
    max_answer_tokens: int = 120

    @cached_property
    def version(self) -> str:
        """Identity of the wording and the numbering: part of every label's provenance."""
        return content_hash(PROMPT_WORDING, self.citation_ids, digits=12)

    def write_request(self, question: str, hits: Sequence[Hit]) -> ChatRequest:
        """Return the request a model answers.

        The sources are in the system message, the question alone in the user message, so that
        everything before the question can be shared and cached.
        """
        sources = "\n".join(
            self._write_source(number, hit) for number, hit in enumerate(hits, start=1)
        )
        system: Message = {
            "role": "system",
            "content": RULES.format(refusal=REFUSAL_WORD) + sources,
        }
        user: Message = {"role": "user", "content": question}
        return ChatRequest(
            messages=(system, user),
            max_tokens=self.max_answer_tokens,
            best_score=max((hit.score for hit in hits), default=0.0),
        )

    def _write_source(self, number: int, hit: Hit) -> str:
        label = f"[{self.label(number, hit)}]"
        units = " ".join(f"{unit} {label}" for unit in split_units(hit.text))
        return f"{label} {' > '.join(hit.heading_path) or hit.title}: {units}"

    def label(self, number: int, hit: Hit) -> str:
        """Return the id by which the model cites the hit at 1-based rank `number`."""
        return str(number) if self.citation_ids == "local" else hit.chunk_id


@dataclass(frozen=True, kw_only=True)
class DraftAnswer:
    """A model's text read as an answer, before validation.

    `text` carries full ids (`[docs:slug/n]`); `unknown_ids` are citations of nothing retrieved.
    """

    text: str
    cited: tuple[Hit, ...]
    refused: bool
    unknown_ids: tuple[str, ...] = ()


def read_answer(raw: str, hits: Sequence[Hit], prompt: PromptFormat) -> DraftAnswer:
    """Map a model's text to full citation ids and the cited hits, in order of first mention."""
    stripped = raw.strip()
    if stripped.rstrip(".").upper() == REFUSAL_WORD:
        return DraftAnswer(text="", cited=(), refused=True)
    by_label = {prompt.label(number, hit): hit for number, hit in enumerate(hits, start=1)}
    cited: dict[str, Hit] = {}
    unknown: list[str] = []

    def to_full_id(match: re.Match[str]) -> str:
        hit = by_label.get(match["id"])
        if hit is None:
            unknown.append(match["id"])
            return match[0]
        cited.setdefault(hit.chunk_id, hit)
        return f"[{hit.chunk_id}]"

    text = CITATION_PATTERN.sub(to_full_id, stripped)
    return DraftAnswer(
        text=text, cited=tuple(cited.values()), refused=False, unknown_ids=tuple(unknown)
    )


def read_sources_text(messages: Sequence[Mapping[str, object]]) -> str:
    """Return the numbered sources of a request, exactly as the model saw them.

    Raises:
        InvalidInputError: the first message lists no sources: `write_request` did not write it.
    """
    system = str(messages[0]["content"]) if messages else ""
    _, heading, sources = system.partition(_SOURCES_HEADING)
    if not heading:
        raise InvalidInputError(
            "reading the sources of a request",
            expected=f"a first message with {_SOURCES_HEADING!r} in it",
            found=repr(system[:120]) if messages else "no messages",
            next_step="label again: these messages were written by another prompt",
        )
    return sources


def write_refusal(question: str) -> str:
    """Return the sentence a user reads when the documentation does not answer them."""
    shortened = question if len(question) <= 120 else question[:117] + "..."
    return f"{REFUSAL_TEXT}: {shortened}"
