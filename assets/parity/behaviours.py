"""Behaviours, answered: was one lost that the teacher has, and is there one nobody registered?

Belongs here: the gates on behaviours, clusters of disagreements. Does not belong here: the cases
(`assets/eval_set/behaviours`), asking the arms (`suites`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from assets.eval_set.behaviours import CRITICAL_CASES, OTHER_CASES
from assets.eval_set.suites import BEHAVIOURS
from assets.parity.arms import BASELINE, CANDIDATE
from assets.parity.suites import (
    Outcome,
    Pairs,
    SuiteGate,
    SuiteLimits,
    check_not_worse,
    describe_unmeasured,
    keep_current,
    take_worst,
)
from serving.models.protocols import Vectors

CLUSTER_COSINE = 0.60  # mean cosine at or above which questions are of one kind
REGISTERED_COSINE = 0.60  # nearest registered case at or above: the kind is measured


def decide_behaviour_gates(
    answers: pl.DataFrame, registry: pl.DataFrame, limits: SuiteLimits
) -> tuple[SuiteGate, ...]:
    """Return a gate for each behaviour, in the registry's order.

    Critical: none of the cases that the teacher passes is lost in any wording, of at least 59.
    Another: at most the declared margin fewer than the teacher passes, of at least 100.
    """
    worst = take_worst(keep_current(answers, registry)).filter(suite=BEHAVIOURS)
    gates = []
    for (name, is_critical), cases in registry.group_by("kind", "is_critical", maintain_order=True):
        mine = worst.join(cases.select("case_id"), on="case_id", how="semi")
        gates.append(
            check_nothing_lost(mine, name=f"behaviour_{name}")
            if is_critical
            else check_few_lost(
                mine, name=f"behaviour_{name}", margin=limits.behaviour_margin_ratio
            )
        )
    return tuple(gates)


def check_nothing_lost(worst: pl.DataFrame, *, name: str) -> SuiteGate:
    """No case that the teacher passes is failed by the candidate.

    What the teacher fails cannot be lost, so n counts the cases that it passes.
    """
    both = worst.filter(arm=BASELINE).join(
        worst.filter(arm=CANDIDATE), on="case_id", suffix="_candidate"
    )
    shown = both.filter("is_passed")
    lost = shown.filter(~pl.col("is_passed_candidate"))["case_id"].to_list()
    known = int(shown["is_passed_candidate"].is_not_null().sum())
    is_whole = known == shown.height and known >= CRITICAL_CASES
    outcome: Outcome = "FAIL" if lost else "PASS" if is_whole else "INCONCLUSIVE"
    named = f": {', '.join(lost[:5])}" if lost else ""
    return SuiteGate(
        name=name,
        unit="count",
        relation="at most",
        outcome=outcome,
        number=float(len(lost)) if both.height else None,
        limit=0.0,
        n=known,
        detail=f"{len(lost)} of {known} cases that the {BASELINE} passes were lost{named}; "
        f"{CRITICAL_CASES} are needed, and the {BASELINE} fails {both.height - shown.height}"
        if both.height
        else describe_unmeasured(name.replace("_", " ")),
    )


def check_few_lost(worst: pl.DataFrame, *, name: str, margin: float) -> SuiteGate:
    """The candidate passes at most `margin` fewer cases than the teacher, of at least 100."""
    gate = check_not_worse(worst, name=name, baseline=BASELINE, margin=margin)
    pairs = Pairs.count(worst, CANDIDATE, BASELINE)
    if gate.outcome == "PASS" and pairs.n < OTHER_CASES:
        detail = f"{gate.detail}; n = {pairs.n} is under {OTHER_CASES}"
        return SuiteGate(**vars(gate) | {"outcome": "INCONCLUSIVE", "detail": detail})
    return gate


@dataclass(frozen=True, kw_only=True)
class DisagreementCluster:
    """Questions of one kind on which the candidate parts from the teacher."""

    question_ids: tuple[str, ...]
    medoid: str
    nearest_behaviour: str | None
    nearest_cosine: float

    @property
    def is_registered(self) -> bool:
        """Whether the registry measures questions of this kind."""
        return self.nearest_cosine >= REGISTERED_COSINE


def find_lost_cases(
    graded_answers: pl.DataFrame, golden_cases: pl.DataFrame
) -> tuple[pl.DataFrame, int]:
    """Return the golden cases only the teacher got right, and how many both arms were graded on."""
    exact = graded_answers.filter(
        pl.col("value").is_not_null(), metric="exact_match", repeat=0
    ).select("arm", "case_id", "value")
    both = exact.filter(arm=BASELINE).join(
        exact.filter(arm=CANDIDATE), on="case_id", suffix="_candidate"
    )
    lost = both.filter(pl.col("value") > pl.col("value_candidate"))
    return golden_cases.join(lost.select("case_id"), on="case_id", how="semi"), both.height


def find_disagreement_clusters(
    question_ids: Sequence[str],
    vectors: Vectors,
    *,
    registered: Vectors,
    behaviours: Sequence[str],
) -> list[DisagreementCluster]:
    """Group disagreements by what they ask, the largest first.

    Args:
        question_ids: n questions on which the arms disagree.
        vectors: [n, d] their unit vectors.
        registered: [m, d] unit vectors of the registry's cases.
        behaviours: m names of their behaviours.
    """
    if len(question_ids) < 2:
        labels = np.zeros(len(question_ids), dtype=int)
    else:
        from sklearn.cluster import AgglomerativeClustering

        labels = AgglomerativeClustering(
            n_clusters=None,
            metric="cosine",
            linkage="average",
            distance_threshold=1 - CLUSTER_COSINE,
        ).fit_predict(vectors)
    clusters = [
        _describe_cluster(
            np.flatnonzero(labels == label).tolist(), question_ids, vectors, registered, behaviours
        )
        for label in np.unique(labels)
    ]
    return sorted(clusters, key=lambda cluster: -len(cluster.question_ids))


def _describe_cluster(
    rows: Sequence[int],
    question_ids: Sequence[str],
    vectors: Vectors,
    registered: Vectors,
    behaviours: Sequence[str],
) -> DisagreementCluster:
    members = vectors[list(rows)]
    medoid = rows[int((members @ members.T).sum(axis=1).argmax())]
    nearest = (vectors[medoid] @ registered.T) if len(behaviours) else np.zeros(0)
    return DisagreementCluster(
        question_ids=tuple(question_ids[row] for row in rows),
        medoid=question_ids[medoid],
        nearest_behaviour=behaviours[int(nearest.argmax())] if nearest.size else None,
        nearest_cosine=float(nearest.max()) if nearest.size else 0.0,
    )


def check_no_unregistered_cluster(
    clusters: Sequence[DisagreementCluster], *, compared: int, limits: SuiteLimits
) -> SuiteGate:
    """No kind of question that the registry does not measure has too many disagreements.

    Args:
        clusters: of the disagreements.
        compared: how many questions both arms answered; without any the gate is open.
        limits: how many are too many.
    """
    strays = [
        cluster
        for cluster in clusters
        if not cluster.is_registered and len(cluster.question_ids) >= limits.cluster_cases
    ]
    largest = max(
        (len(cluster.question_ids) for cluster in clusters if not cluster.is_registered), default=0
    )
    named = "; ".join(f"{len(c.question_ids)} like {c.medoid}" for c in strays[:5])
    return SuiteGate(
        name="unregistered_disagreements",
        unit="count",
        relation="at most",
        outcome="FAIL" if strays else "PASS" if compared else "INCONCLUSIVE",
        number=float(largest) if compared else None,
        limit=float(limits.cluster_cases - 1),
        n=compared,
        detail=f"{len(clusters)} clusters of disagreements, the largest outside the registry has "
        f"{largest}{f': {named}' if named else ''}"
        if compared
        else describe_unmeasured("what student and teacher disagree about"),
    )


def leave_disagreements_open(limits: SuiteLimits) -> SuiteGate:
    """Return the gate where golden cases and suites were not answered by the same candidate."""
    return replace(
        check_no_unregistered_cluster([], compared=0, limits=limits),
        detail="the graded golden answers are not of the candidate that answered the suites: run "
        "`understudy run`, then answer the suites again",
    )
