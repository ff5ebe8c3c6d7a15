"""The judge's anchors: answers whose quality is known because they were built that way.

A person wrote a question, the sentence that answers it, a wrong version of it and an unrelated one;
each construction makes an answer of them that is right or wrong on known axes of the rubric. What a
judge says of anchors tells how good and how steady the judge is, not how good a model is. Belongs
here: the constructions, their labels, the daily rotation. Does not belong here: asking the judge,
comparing what it said (`assets/parity/rulers`).
"""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import polars as pl

from assets import tables
from serving.hashing import content_hash
from serving.models.protocols import Hit
from serving.pipeline.prompt import REFUSAL_WORD, PromptFormat

LEAST_ANCHORS = 400
ANCHORS_PER_DAY = 50
STRANGER = 17
"""How far away the core lies whose sources cannot answer this core's question."""

LABELS: Mapping[str, Mapping[str, bool]] = {
    "verbatim": {
        "grounded": True, "complete": True, "cites_right": True, "refuses_right": True,
        "clear": True,
    },
    "wrong_source": {"grounded": False, "cites_right": False},
    "no_citation": {"cites_right": False},
    "altered_fact": {"grounded": False},
    "off_topic": {"complete": False},
    "refused_answerable": {"complete": False, "refuses_right": False},
    "refused_rightly": {"complete": True, "refuses_right": True},
    "answered_unanswerable": {"complete": False, "refuses_right": False},
    "leftover_markup": {"clear": False},
}  # fmt: skip
"""Which axes a construction is known to be right (true) or wrong (false) on; no other is labelled.
"""

_UNANSWERABLE = frozenset({"refused_rightly", "answered_unanswerable"})


def build_anchors(set_hash: str, cores: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Return the rows of `eval_set/judge_anchors`: one per anchor and labelled axis."""
    rows = []
    for number, core in enumerate(cores):
        stranger = cores[(number + STRANGER) % len(cores)]
        for construction, labels in LABELS.items():
            shown = stranger if construction in _UNANSWERABLE else core
            request = PromptFormat().write_request(core["question"], _write_sources(shown))
            anchor = {
                "anchor_id": f"{core['anchor_id']}-{construction}",
                "core_id": core["anchor_id"],
                "construction": construction,
                "question": core["question"],
                "messages": [dict(message) for message in request.messages],
                "answer": _write_answer(construction, shown),
                "set_hash": set_hash,
            }
            rows += [anchor | {"axis": axis, "is_good": good} for axis, good in labels.items()]
    return pl.DataFrame(rows, schema=tables.JUDGE_ANCHORS)


def choose_anchors(anchor_ids: Sequence[str], day: date) -> list[str]:
    """Return the anchors of a day: every anchor comes round, in an order that no name decides.

    A deterministic judge repeats its flips, so asking the same anchors daily would count one flip
    as many.
    """
    shuffled = sorted(set(anchor_ids), key=lambda name: content_hash(name))
    turns = max(1, -(-len(shuffled) // ANCHORS_PER_DAY))
    return shuffled[day.toordinal() % turns :: turns]


def find_anchor_faults(anchors: pl.DataFrame) -> list[str]:
    """Return why the anchors cannot measure a judge: too few, or an axis known one way only."""
    count = anchors["anchor_id"].n_unique()
    sides = anchors.group_by("axis").agg(pl.col("is_good").n_unique().alias("sides"))
    lopsided = sorted(sides.filter(pl.col("sides") < 2)["axis"])
    return [
        *([f"{count} of at least {LEAST_ANCHORS} anchors"] if count < LEAST_ANCHORS else []),
        *(f"{axis}: only known-good or only known-bad anchors" for axis in lopsided),
    ]


def _write_sources(core: Mapping[str, Any]) -> tuple[Hit, ...]:
    parts = (("heading", "right"), ("other_heading", "other"))
    return tuple(
        Hit(
            chunk_id=f"docs:anchors/{place}",
            content_hash="",
            title=core[heading],
            url="",
            heading_path=("Manual", core[heading]),
            text=core[text],
            score=1.0,
        )
        for place, (heading, text) in enumerate(parts, start=1)
    )


def _write_answer(construction: str, core: Mapping[str, Any]) -> str:
    answers: dict[str, str] = {
        "verbatim": f"{core['right']} [1]",
        "wrong_source": f"{core['right']} [2]",
        "no_citation": core["right"],
        "altered_fact": f"{core['wrong']} [1]",
        "off_topic": f"{core['other']} [2]",
        "refused_answerable": REFUSAL_WORD,
        "refused_rightly": REFUSAL_WORD,
        "answered_unanswerable": f"{core['right']} [1]",
        "leftover_markup": f"</td> ## {core['heading']} ]( {core['right']} {core['right']} [1]",
    }
    return answers[construction]
