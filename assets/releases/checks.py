"""What the releases promise."""

import dagster as dg
import polars as pl

from assets import keys
from assets.parity.suite_evidence import read_candidate
from assets.partitions import RECIPES
from serving.errors import ReleaseError
from serving.home import Home
from serving.releases.bundle import CURRENT, load_current, load_public_key, verify_bundle


@dg.asset_check(asset=keys.GATE_VERDICT, blocking=True, partitions_def=RECIPES)
def every_gate_has_evidence(gate_verdict: pl.DataFrame) -> dg.AssetCheckResult:
    """One verdict, and no gate that passes without cases behind it."""
    verdicts = gate_verdict["verdict"].unique().to_list()
    hollow = gate_verdict.filter((pl.col("outcome") == "PASS") & (pl.col("n") == 0))
    return dg.AssetCheckResult(
        passed=len(verdicts) == 1 and hollow.is_empty(),
        metadata={
            "gate_count": gate_verdict.height,
            "verdicts": verdicts,
            "passed_without_evidence": hollow["gate"].to_list(),
        },
    )


@dg.asset_check(
    asset=keys.GATE_VERDICT,
    additional_ins={"arm_answers": dg.AssetIn(key=keys.ARM_ANSWERS)},
    blocking=True,
    partitions_def=RECIPES,
)
def judged_answers_are_the_candidates(
    gate_verdict: pl.DataFrame, arm_answers: pl.DataFrame
) -> dg.AssetCheckResult:
    """The answers judged were given by the very students and pipeline that the verdict names.

    A student that is asked first comes from a run of its own, so it may be another one by now.
    """
    answered, judged = read_candidate(arm_answers), read_candidate(gate_verdict)
    is_same = answered is not None and answered == judged
    return dg.AssetCheckResult(
        passed=is_same,
        description=None
        if is_same
        else "run `understudy run --select parity/arm_answers --force`, then `understudy run`",
        metadata={"answered_by": str(answered), "judged": str(judged)},
    )


@dg.asset_check(asset=keys.RELEASE_BUNDLE, blocking=True, partitions_def=RECIPES)
def bundle_verifies(
    release_bundle: pl.DataFrame, home: dg.ResourceParam[Home]
) -> dg.AssetCheckResult:
    """Every file of the bundle is as it was summed, and CURRENT is signed and as recorded."""
    row = release_bundle.row(0, named=True)
    try:
        found = verify_bundle(home.releases / row["release_id"]).release_id
        current = ""
        if (home.releases / CURRENT).exists():  # what is never published may be the first of all
            public = load_public_key(home.keys)
            current = load_current(home.releases, public).manifest.release_id
        problem = ""
    except ReleaseError as error:
        found, current, problem = "", "", str(error)
    is_current = current == row["release_id"]
    return dg.AssetCheckResult(
        passed=found == row["release_id"] and is_current == row["is_current"],
        description=problem or None,
        metadata={
            "expected_release": row["release_id"],
            "verified_release": found or "none",
            "current_release": current or "none",
        },
    )
