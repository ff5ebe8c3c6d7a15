"""Judging a release: the tables a verdict rests on, the verdict, the advice, and its report.

Belongs here: bringing gathered tables together, purely. Does not belong here: reading them
(`assets`), which gates there are (`gate`), what the report looks like (`assets/parity/report`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import polars as pl

from assets.eval_set.suites import join_protected
from assets.parity.arms import CANDIDATE
from assets.parity.economics import EconomicsTerms
from assets.parity.exposure import find_trained
from assets.parity.last_release import LastStudent
from assets.parity.prices import find_missing_price
from assets.parity.strategy import Strategy, choose_strategy
from assets.parity.suite_evidence import CandidateIdentity, choose_suite_gates
from assets.parity.tiers import TierStudent
from assets.releases.baseline import Baseline
from assets.releases.bundling import ReleaseTerms
from assets.releases.gate import QUALITY_OF, GateVerdict, decide
from assets.releases.gates import GatePolicy, GateResult, IntegrityEvidence
from assets.releases.integrity import gather_integrity
from assets.releases.shadow import ShadowedPipeline
from assets.releases.tiers import check_smaller_student
from serving.pipeline.router import RouterPolicy


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """Every table that the verdict on a recipe's student rests on, each by its own name."""

    parity_report: pl.DataFrame
    arm_answers: pl.DataFrame
    graded_answers: pl.DataFrame
    operating_points: pl.DataFrame
    golden_cases: pl.DataFrame
    guarded_questions: pl.DataFrame
    chunks: pl.DataFrame
    vector_index: pl.DataFrame
    training_set: pl.DataFrame
    student_adapter: pl.DataFrame
    training_curve: pl.DataFrame
    held_out_answers: pl.DataFrame
    calibration: pl.DataFrame
    labelled_examples: pl.DataFrame
    router_curve: pl.DataFrame
    router_figures: pl.DataFrame
    economics: pl.DataFrame
    refusal_suite: pl.DataFrame
    over_refusal_suite: pl.DataFrame
    behaviour_registry: pl.DataFrame

    @property
    def adapter(self) -> dict[str, Any]:
        """The student_adapter row."""
        return self.student_adapter.row(0, named=True)

    @property
    def protected_cases(self) -> pl.DataFrame:
        """What training must keep away from: case_id, question and suite."""
        suites = (self.refusal_suite, self.over_refusal_suite, self.behaviour_registry)
        return join_protected(self.golden_cases, *suites)

    @property
    def trained_question_ids(self) -> frozenset[str]:
        """The guarded questions that the student learned from."""
        trained = find_trained(self.training_set, self.labelled_examples)
        return frozenset(trained["question_id"])

    @property
    def fitted(self) -> dict[str, Any]:
        """The calibration row."""
        return self.calibration.row(0, named=True)


TABLES = tuple(field.name for field in fields(Evidence))


def judge_candidate(
    evidence: Evidence,
    *,
    smaller: Sequence[tuple[TierStudent, pl.DataFrame]] = (),
    locked_sha256: str,
    policy: GatePolicy,
    suites: Sequence[GateResult],
    agreement: GateResult,
    terms: EconomicsTerms,
    router: RouterPolicy,
    baseline: Baseline,
) -> GateVerdict:
    """Return the verdict on a candidate.

    Args:
        evidence: its tables.
        smaller: the students asked before its own, each with its training_set.
        locked_sha256: what the golden set's lock says now.
        policy: the limits.
        suites: the gates of its suites, and on the kinds of real question it loses.
        agreement: the gate on agreement in shadow.
        terms: say which prices are stated.
        router: its policy promises a risk, at which confidence is certified.
        baseline: what it all was measured with.
    """

    def gather(student: TierStudent, training_set: pl.DataFrame) -> IntegrityEvidence:
        return gather_integrity(
            evidence.golden_cases,
            evidence.protected_cases,
            evidence.guarded_questions,
            training_set,
            evidence.labelled_examples,
            locked_sha256=locked_sha256,
            calibration=student.fitted,
            adapter=student.adapter,
            maximum_risk_ratio=router.maximum_risk_ratio,
        )

    own = TierStudent(adapter=evidence.adapter, fitted=evidence.fitted)
    return decide(
        evidence.parity_report,
        integrity=gather(own, evidence.training_set),
        policy=policy,
        suites=(
            *(check_smaller_student(one, gather(one, taught), router) for one, taught in smaller),
            *suites,
        ),
        agreement=agreement,
        # The ratio is of token prices, also where the machine is rented by the hour.
        missing_price=find_missing_price(
            terms.prices, evidence.adapter["student"], is_paid_by_hour=False
        ),
        evidence={"baseline": asdict(baseline)},
    )


def choose_gates(
    evidence: Evidence,
    measured: pl.DataFrame,
    candidate: CandidateIdentity,
    last: LastStudent | None,
    policy: GatePolicy,
) -> list[GateResult]:
    """Return the gates of the suites that were measured of this very candidate, else open ones."""
    chosen = choose_suite_gates(
        measured,
        candidate=candidate,
        last=last,
        refusal_suite=evidence.refusal_suite,
        over_refusal_suite=evidence.over_refusal_suite,
        behaviour_registry=evidence.behaviour_registry,
        limits=policy.suite_limits,
    )
    return [GateResult(**vars(gate)) for gate in chosen]


def name_shadowed(
    evidence: Evidence, tiers: Sequence[TierStudent], terms: ReleaseTerms
) -> ShadowedPipeline:
    """Return what a pair of answers has to come from to be evidence of this candidate."""
    return ShadowedPipeline(
        students=tuple(tier.adapter["adapter"] for tier in tiers),
        teacher=terms.teacher.model,
        index_fingerprint=evidence.vector_index["index_fingerprint"].item(),
        prompt_version=terms.prompt_version,
    )


def advise(evidence: Evidence, verdict: GateVerdict, terms: EconomicsTerms) -> tuple[Strategy, str]:
    """Return what to do about the student, and why, in the month that is expected."""
    is_expected = (pl.col("arm") == CANDIDATE) & (pl.col("scenario") == "expected")
    month = evidence.economics.row(by_predicate=is_expected, named=True)
    return choose_strategy(
        teacher_usd_per_month=month["teacher_usd_per_month"],
        saving_usd_per_month=month["saving_usd_per_month"],
        terms=terms,
        example_count=evidence.labelled_examples.height,
        quality=QUALITY_OF[verdict.verdict],
    )
