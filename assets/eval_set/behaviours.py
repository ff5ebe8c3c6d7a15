"""The behaviour registry: what a student must not lose, with enough different cases for each.

A behaviour is written as hand-written cores (what is asked) and templates (how it is asked); its
cases are every core in every template. Belongs here: making the cases and measuring how different
they are. Does not belong here: answering them, what counts as lost (`assets/parity/behaviours`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import polars as pl

from assets import tables
from assets.eval_set.suites import BEHAVIOURS
from serving.pipeline.questions import fold_text

CRITICAL_CASES = 59
"""Cases of a critical behaviour: none lost among so many bounds the loss at 5 % (95 %)."""
OTHER_CASES = 100
LEAST_CORES = 12
LEAST_TEMPLATES = 4
LARGEST_CORE_RATIO = 0.15  # above: a single core decides too much
SAME_WORDS_RATIO = 0.90  # share of words in common at or above which two cases are one
MOST_REPEATED_RATIO = 0.05


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """How different the cases of one behaviour are."""

    behaviour_id: str
    is_critical: bool
    case_count: int
    core_count: int
    template_count: int
    largest_core_ratio: float
    repeated_ratio: float

    @property
    def faults(self) -> tuple[str, ...]:
        """What this behaviour falls short of; empty when it can be measured."""
        least = CRITICAL_CASES if self.is_critical else OTHER_CASES
        short = (
            (self.case_count < least, f"{self.case_count} of at least {least} cases"),
            (self.core_count < LEAST_CORES, f"{self.core_count} of at least {LEAST_CORES} cores"),
            (
                self.template_count < LEAST_TEMPLATES,
                f"{self.template_count} of at least {LEAST_TEMPLATES} templates",
            ),
            (
                self.largest_core_ratio > LARGEST_CORE_RATIO,
                f"one core makes {self.largest_core_ratio:.0%} of the cases, "
                f"at most {LARGEST_CORE_RATIO:.0%}",
            ),
            (
                self.repeated_ratio > MOST_REPEATED_RATIO,
                f"{self.repeated_ratio:.0%} of the cases repeat another, "
                f"at most {MOST_REPEATED_RATIO:.0%}",
            ),
        )
        return tuple(f"{self.behaviour_id}: {text}" for is_short, text in short if is_short)


def tabulate_registry(set_hash: str, lines: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Return the rows of `eval_set/behaviour_registry`: `kind` is the behaviour."""
    rows = [
        {
            "case_id": f"{line['behaviour_id']}-{number:02}-{place}",
            "suite": BEHAVIOURS,
            "question": template.format(core["text"]),
            "kind": line["behaviour_id"],
            "is_critical": line["is_critical"],
            "should_refuse": line["should_refuse"],
            "must_include": core["must_include"],
            "gold_pages": core["gold_pages"],
            "core_id": f"{line['behaviour_id']}-{number:02}",
            "template": template,
            "set_hash": set_hash,
        }
        for line in lines
        for number, core in enumerate(line["cores"], start=1)
        for place, template in enumerate(line["templates"], start=1)
    ]
    return pl.DataFrame(rows, schema=tables.SUITE_CASES)


def measure_diversity(registry: pl.DataFrame) -> list[Diversity]:
    """Return how different the cases of each behaviour are, in the registry's order."""
    return [
        Diversity(
            behaviour_id=str(name),
            is_critical=bool(cases["is_critical"].all()),
            case_count=cases.height,
            core_count=cases["core_id"].n_unique(),
            template_count=cases["template"].n_unique(),
            largest_core_ratio=max(Counter(cases["core_id"]).values()) / cases.height,
            repeated_ratio=_count_repeats(cases["question"].to_list()) / cases.height,
        )
        for (name,), cases in registry.group_by("kind", maintain_order=True)
    ]


def _count_repeats(questions: Sequence[str]) -> int:
    """Count the questions that share nearly all their words with an earlier one."""
    words = [frozenset(fold_text(question).split()) for question in questions]
    repeats = {
        second
        for first, second in combinations(range(len(words)), 2)
        if len(words[first] & words[second]) >= SAME_WORDS_RATIO * len(words[first] | words[second])
    }
    return len(repeats)
