"""What the releases promise."""

import dagster as dg
import polars as pl

from assets import keys
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
