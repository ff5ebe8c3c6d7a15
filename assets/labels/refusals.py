"""The refusal rule: what the teacher refuses, read off how well retrieval did.

The labels say of each question whether the teacher refused it, and how near its best source was.
Where the one foretells the other, a student needs no model to refuse, and none of its capacity.
Belongs here: fitting, measuring and certifying the rule. Does not belong here: applying it
(`serving/models/student_rules`), what it means for the training set (`assets/students`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from assets import charts
from assets.statistics import Interval, wilson_interval
from serving.models.student_rules import RefusalRule

FLOOR_RATIO = 0.7
"""What the lower bounds of both shares must reach: a rule that errs more often than that would
decide worse than a student that was taught refusals."""
MINIMUM_CLASS_SEEDS = 15  # seeds with refusals, and with answers, below which nothing is fitted
FOLDS = 5
SCORE_EDGES = np.linspace(0, 1, 41)
BEST_SCORE = (
    pl.col("retrieved").list.eval(pl.element().struct.field("score")).list.max().fill_null(0.0)
)
"""Of teacher_answers: the score of a question's best source; 0 where nothing was retrieved."""

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Labelled questions of one split: best score, whether the teacher refused, and the seed."""

    scores: Floats
    refused: Flags
    seeds: tuple[str, ...]

    def take(self, rows: Flags) -> "Scored":
        """Return the questions where `rows` is true."""
        seeds = tuple(seed for seed, is_taken in zip(self.seeds, rows, strict=True) if is_taken)
        return Scored(scores=self.scores[rows], refused=self.refused[rows], seeds=seeds)

    def count_seeds(self, *, refused: bool) -> int:
        """Return how many seeds have a question with this outcome."""
        return len({s for s, r in zip(self.seeds, self.refused, strict=True) if r == refused})


def learn_refusals(examples: pl.DataFrame, answers: pl.DataFrame) -> dict[str, Any]:
    """Return the refusal_rule row: the rule of the train split, if it is certified, and its shares.

    The shares are of questions whose seed the fit has not seen (5 folds of seeds).

    Args:
        examples: labelled_examples.
        answers: teacher_answers, which know what was retrieved.
    """
    train = gather_scores(examples, answers, "train")
    row: dict[str, Any] = {
        "intercept": None,
        "weight": None,
        "minimum_score": None,
        "is_certified": False,
        "refusal_count": int(train.refused.sum()),
        "answer_count": int((~train.refused).sum()),
    }
    if min(train.count_seeds(refused=flag) for flag in (True, False)) < MINIMUM_CLASS_SEEDS:
        return row
    rule, says = fit_rule(train), _refuse_unseen(train)
    shares = {
        "refused": measure_share(says, train, refused=True),
        "answered": measure_share(~says, train, refused=False),
    }
    for name, share in shares.items():
        row |= {f"{name}_ratio": share.value, f"{name}_lower_ratio": share.lower}
    is_certified = rule is not None and all(s.lower >= FLOOR_RATIO for s in shares.values())
    if rule is None or not is_certified:
        return row
    return row | rule.model_dump() | {"minimum_score": rule.minimum_score, "is_certified": True}


def gather_scores(examples: pl.DataFrame, answers: pl.DataFrame, split: str) -> Scored:
    """Return the labelled questions of a split, with the score of the best source of each."""
    scored = examples.filter(pl.col("split") == split).join(
        answers.select("question_id", BEST_SCORE.alias("best_score")), on="question_id"
    )
    return Scored(
        scores=scored["best_score"].to_numpy().astype(np.float64),
        refused=scored["refused"].to_numpy().astype(bool),
        seeds=tuple(scored["seed_id"]),
    )


def fit_rule(cases: Scored) -> RefusalRule | None:
    """Fit the odds of a refusal by logistic regression; None where nearer sources do not help.

    Both outcomes weigh the same in all: how many seeds somebody wrote out of scope says nothing of
    the traffic. scikit-learn without a penalty, as one feature of hundreds of cases needs none.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=np.inf, class_weight="balanced")
    model.fit(cases.scores[:, None], cases.refused)
    weight = float(model.coef_[0, 0])
    return RefusalRule(intercept=float(model.intercept_[0]), weight=weight) if weight < 0 else None


def read_refusal_rule(row: dict[str, Any]) -> RefusalRule | None:
    """Return the certified rule of a refusal_rule row; None: there is none."""
    if not row["is_certified"]:
        return None
    return RefusalRule(intercept=row["intercept"], weight=row["weight"])


def apply_rule(rule: RefusalRule, scores: Floats) -> Flags:
    """Return where the rule refuses."""
    return scores < rule.minimum_score


def measure_share(says: Flags, cases: Scored, *, refused: bool) -> Interval:
    """Return the share of the questions with an outcome for which `says` is true.

    With Wilson's interval over seeds: the questions of one seed are alike, so its n is their count.
    """
    chosen = cases.refused == refused
    share, seeds = float(says[chosen].mean()), cases.count_seeds(refused=refused)
    return wilson_interval(share * seeds, seeds)


def _refuse_unseen(cases: Scored) -> Flags:
    """Return where a rule refuses that was fitted without the question's seed."""
    from sklearn.model_selection import GroupKFold

    says = np.zeros(len(cases.refused), dtype=bool)
    folds = GroupKFold(n_splits=FOLDS).split(cases.scores, cases.refused, groups=cases.seeds)
    for inside, outside in folds:
        kept = np.isin(np.arange(len(says)), inside)
        rule = fit_rule(cases.take(kept)) if len(set(cases.refused[kept])) == 2 else None
        if rule is not None:
            says[outside] = apply_rule(rule, cases.scores[outside])
    return says


def tabulate_shares(rule: RefusalRule, splits: dict[str, Scored]) -> str:
    """Return as Markdown what a rule does on splits that it was not fitted on."""
    lines = ["| split | refuses what the teacher refused | answers what it answered |", "|-|-|-|"]
    for name, cases in splits.items():
        says = apply_rule(rule, cases.scores)
        shares = [
            _write_share(says, cases, refused=True),
            _write_share(~says, cases, refused=False),
        ]
        lines.append(f"| {name} | {' | '.join(shares)} |")
    return "\n".join(lines)


def _write_share(says: Flags, cases: Scored, *, refused: bool) -> str:
    if not cases.count_seeds(refused=refused):
        return "none"
    share = measure_share(says, cases, refused=refused)
    limits = f"{share.lower:.2f} to {share.upper:.2f}, {share.n} seeds"
    return f"{charts.write_percent(share.value)} ({limits})"


def draw_best_scores(cases: Scored, limit: float) -> str:
    """Return the histogram of best scores by what the teacher did, as Markdown."""
    groups: dict[str, Sequence[float]] = {
        "refused": cases.scores[cases.refused].tolist(),
        "answered": cases.scores[~cases.refused].tolist(),
    }
    png = charts.draw_histogram(
        groups,
        colours=(charts.ORANGE, charts.BLUE),
        edges=SCORE_EDGES,
        limit=limit,
        title="What the teacher did, by the score of the best source",
        axis_label="best retrieval score",
    )
    return charts.embed_png(png, alt="Histogram of best scores, refused and answered")
