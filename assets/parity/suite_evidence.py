"""What the suites say about one candidate: the evidence a verdict may rest on.

Suites are measured on demand, so what lies in the lake may be of another student or another version
of a suite. Such numbers are no evidence: the gates then stand open, which is no pass. Belongs here:
choosing the evidence. Does not belong here: measuring (`suites`, `behaviours`), the verdict
(`assets/releases/gate`).
"""

import polars as pl

from assets import tables
from assets.parity.behaviours import check_no_unregistered_cluster, decide_behaviour_gates
from assets.parity.suites import SuiteGate, decide_suite_gates, hash_sets
from serving.home import Home

FIELDS = tuple(SuiteGate.__dataclass_fields__)


def read_suite_gates(home: Home, recipe: str) -> pl.DataFrame:
    """Return what was last measured for a recipe; no rows where nothing was."""
    path = home.table("parity/suite_gates", recipe)
    return pl.read_parquet(path) if path.exists() else tables.SUITE_GATES.to_frame()


def choose_suite_gates(
    measured: pl.DataFrame,
    *,
    adapter_sha256: str,
    refusal_suite: pl.DataFrame,
    over_refusal_suite: pl.DataFrame,
    behaviour_registry: pl.DataFrame,
) -> tuple[SuiteGate, ...]:
    """Return the gates of this adapter on the frozen suites of today, open where there are none.

    A product without suites has no gates of them.
    """
    suites = (refusal_suite, over_refusal_suite, behaviour_registry)
    if all(suite.is_empty() for suite in suites):
        return ()
    own = measured.filter(adapter_sha256=adapter_sha256, set_hash=hash_sets(*suites))
    if own.is_empty():
        nothing = tables.SUITE_ANSWERS.to_frame()
        return (
            *decide_suite_gates(nothing, refusal_suite, over_refusal_suite),
            *decide_behaviour_gates(nothing, behaviour_registry),
            check_no_unregistered_cluster([], compared=0),
        )
    return tuple(SuiteGate(**row) for row in own.select(FIELDS).iter_rows(named=True))
