"""Answers with soft targets as wished: which source, how much of each answer, how much tail."""

import math

from assets.labels.logprob_table import (
    AnswerTargets,
    Supplier,
    leave_hard,
    tabulate_targets,
    tokenise_examples,
)
from tests.tiny_student import make_labelled, make_tokenizer

TAIL = 0.25


def tabulate(source, share: float, *, alignment="exact", reason="", first=0, count=4, tail=TAIL):
    """Answers whose first tokens, up to a share of them, have a soft target."""
    items = list(tokenise_examples(make_labelled(12), make_tokenizer(), context_tokens=512))

    def cover(length: int) -> AnswerTargets:
        soft = round(share * length)
        if not soft:
            return leave_hard(length, reason=reason)
        pad = [None] * (length - soft)
        return AnswerTargets(
            alignment=alignment,
            y_logp=[*[math.log(0.5)] * soft, *pad],
            tail_logp=[*[math.log(tail)] * soft, *pad],
            top=[*[[(1, math.log(0.5)), (2, math.log(0.25))]] * soft, *[()] * len(pad)],
        )

    chosen = items[first : first + count]
    targets = [(item, cover(len(item.answer.ids))) for item in chosen]
    return tabulate_targets(targets, Supplier(source=source), tokenizer=make_tokenizer())
