"""What the suites say about one candidate: the evidence a verdict may rest on.

Suites are measured on demand, so what lies in the lake may be of another student, another version
of a suite, or answers made with another teacher, prompt, index, router or calibration. Such numbers
are no evidence: the gates then stand open, which is no pass. Belongs here: choosing the evidence.
Does not belong here: measuring (`suites`, `behaviours`), the verdict (`assets/releases/gate`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import polars as pl

from assets import tables
from assets.parity.behaviours import check_no_unregistered_cluster, decide_behaviour_gates
from assets.parity.last_release import LastStudent
from assets.parity.suites import MEASURE, SuiteGate, SuiteLimits, decide_suite_gates, hash_sets
from assets.parity.tiers import TierStudent
from serving.hashing import content_hash
from serving.home import Home
from serving.pipeline.assembly import PipelineParts

FIELDS = tuple(SuiteGate.__dataclass_fields__)
LAST = "_vs_last_release"


@dataclass(frozen=True, kw_only=True)
class CandidateIdentity:
    """Whose answers these are: the weights, and all that decides an answer beside them."""

    adapter_sha256: str
    pipeline_fingerprint: str


def identify_candidate(
    parts: PipelineParts,
    *,
    index_fingerprint: str,
    tiers: Sequence[TierStudent],
) -> CandidateIdentity:
    """Return the identity under which a candidate's answers are made, and may be used.

    It covers what decides the teacher's answers (`PipelineParts.fingerprint_answers`: index,
    prompt, teacher, validator), and what decides who is asked: the router, the calibration, and
    the students before the last one.

    Args:
        parts: of the pipeline that answers.
        index_fingerprint: of the index snapshot that it retrieves from.
        tiers: the students it asks in turn; the weights of the last one are the candidate's.
    """
    *smaller, own = tiers
    return CandidateIdentity(
        adapter_sha256=own.adapter["adapter_sha256"],
        pipeline_fingerprint=content_hash(
            parts.fingerprint_answers(index_fingerprint),
            asdict(parts.router),
            own.fitted["calibrator_hash"],
            *([tier.adapter["adapter_sha256"], tier.fitted["calibrator_hash"]] for tier in smaller),
        ),
    )


def read_candidate(answers: pl.DataFrame) -> CandidateIdentity | None:
    """Return whose answers a table holds; None where it does not say, or says several."""
    found = answers.select(*CandidateIdentity.__dataclass_fields__).unique()
    if found.height != 1 or None in found.row(0):
        return None
    return CandidateIdentity(**found.row(0, named=True))


def read_suite_gates(home: Home, recipe: str) -> pl.DataFrame:
    """Return what was last measured for a recipe; no rows where nothing was."""
    path, nothing = home.table("parity/suite_gates", recipe), tables.SUITE_GATES.to_frame()
    found = pl.read_parquet(path) if path.exists() else nothing
    return found if found.schema == nothing.schema else nothing  # another version's is no evidence


def choose_suite_gates(
    measured: pl.DataFrame,
    *,
    candidate: CandidateIdentity,
    last: LastStudent | None,
    refusal_suite: pl.DataFrame,
    over_refusal_suite: pl.DataFrame,
    behaviour_registry: pl.DataFrame,
    limits: SuiteLimits,
) -> tuple[SuiteGate, ...]:
    """Return the gates of this candidate on the frozen suites of today, open where there are none.

    A product without suites has no gates of them. What was judged by other limits is none of them.
    Where another student answers users by now than
    the one that `last_release` was, the gates against it are open again.
    """
    suites = (refusal_suite, over_refusal_suite, behaviour_registry)
    if all(suite.is_empty() for suite in suites):
        return ()
    own = measured.filter(set_hash=hash_sets(*suites, limits=limits), **asdict(candidate))
    if own.is_empty():
        nothing = tables.SUITE_ANSWERS.to_frame()
        return (
            *decide_suite_gates(nothing, refusal_suite, over_refusal_suite, limits),
            *decide_behaviour_gates(nothing, behaviour_registry, limits),
            check_no_unregistered_cluster([], compared=0, limits=limits),
        )
    gates = tuple(SuiteGate(**row) for row in own.select(FIELDS).iter_rows(named=True))
    if last is None or own["released_fingerprint"].eq_missing(last.fingerprint).all():
        return gates
    return tuple(_reopen(gate, last) if gate.name.endswith(LAST) else gate for gate in gates)


def _reopen(gate: SuiteGate, last: LastStudent) -> SuiteGate:
    """Return the gate without its number, which is of another release's student."""
    return replace(
        gate,
        outcome="INCONCLUSIVE",
        number=None,
        n=0,
        detail=f"not compared with {last.adapter['adapter']}, which answers users now: run "
        f"`understudy run {MEASURE} --force`",
        is_gating=True,
    )
