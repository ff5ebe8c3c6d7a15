"""Words two questions share: the same text, the same words, or eight words in a row.

Needs no embedding, so it leaves no room for argument. Belongs here: comparing words. Does not
belong here: what a word is (`serving/pipeline/questions`), vectors (`nearest`), what a match means
for a question (`guard`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from serving.pipeline.questions import normalise_question, split_words

NGRAM_WORDS = 8
"""Words in a row that count as overlap. GPT-3's contamination study took the 5th percentile of
document lengths, never under 8 (Brown et al. 2020, appendix C); questions sit at that lower end."""
SHORTEST_NGRAM_WORDS = 5
"""An eval question of 5 to 7 words has no 8-gram: it counts as one gram of its own length. Below 5
("what is a seed?") half the questions about its subject would hold it, so only equality counts."""

MatchReason = Literal["same_text", "same_words", "shared_ngram"]


@dataclass(frozen=True, kw_only=True)
class TextMatch:
    """An eval case whose words a question repeats, and which words; `ngram` only where shared."""

    case_id: str
    reason: MatchReason
    ngram: str | None = None


@dataclass(frozen=True, kw_only=True)
class EvalTexts:
    """Eval questions, indexed by text, by words and by n-gram; the first case of each wins.

    Short questions lie under their first `SHORTEST_NGRAM_WORDS` words, each with its case.
    """

    by_text: dict[str, str]
    by_words: dict[str, str]
    by_ngram: dict[str, str]
    short_by_head: dict[str, dict[str, str]]

    @classmethod
    def index(cls, case_ids: Sequence[str], questions: Sequence[str]) -> "EvalTexts":
        """Index the questions of the cases."""
        index = cls(by_text={}, by_words={}, by_ngram={}, short_by_head={})
        for case_id, question in zip(case_ids, questions, strict=True):
            words = split_words(question)
            text = " ".join(words)
            index.by_text.setdefault(normalise_question(question), case_id)
            index.by_words.setdefault(text, case_id)
            for ngram in _ngrams(words, NGRAM_WORDS):
                index.by_ngram.setdefault(ngram, case_id)
            if SHORTEST_NGRAM_WORDS <= len(words) < NGRAM_WORDS:
                head = " ".join(words[:SHORTEST_NGRAM_WORDS])
                index.short_by_head.setdefault(head, {}).setdefault(text, case_id)
        return index

    def match(self, question: str) -> TextMatch | None:
        """Return the strongest match of a question: its text, its words, then words in a row."""
        if (case_id := self.by_text.get(normalise_question(question))) is not None:
            return TextMatch(case_id=case_id, reason="same_text")
        words = split_words(question)
        text = " ".join(words)
        if (case_id := self.by_words.get(text)) is not None:
            return TextMatch(case_id=case_id, reason="same_words")
        ngrams = _ngrams(words, NGRAM_WORDS)
        if not self.by_ngram.keys().isdisjoint(ngrams):
            ngram = next(ngram for ngram in ngrams if ngram in self.by_ngram)
            return TextMatch(case_id=self.by_ngram[ngram], reason="shared_ngram", ngram=ngram)
        return self._match_short(words, f" {text} ") if self.short_by_head else None

    def _match_short(self, words: Sequence[str], padded: str) -> TextMatch | None:
        heads = _ngrams(words, SHORTEST_NGRAM_WORDS)
        if self.short_by_head.keys().isdisjoint(heads):
            return None
        for head in heads:
            for short, case_id in self.short_by_head.get(head, {}).items():
                if f" {short} " in padded:
                    return TextMatch(case_id=case_id, reason="shared_ngram", ngram=short)
        return None


def normalise_text(text: str) -> str:
    """Fold case and drop everything but words: coarser than `fold_text`, a guard asks for less."""
    return " ".join(split_words(text))


def _ngrams(words: Sequence[str], length: int) -> list[str]:
    return [" ".join(words[at : at + length]) for at in range(len(words) - length + 1)]
