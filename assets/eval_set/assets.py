"""Eval-set assets: the frozen golden cases and their embeddings.

Belongs here: declarations. Does not belong here: anything that would tune on the set.
"""

import dagster as dg
import polars as pl

from assets import keys, tables
from assets.eval_set.golden import Golden
from serving.models.protocols import Embedder


@dg.observable_source_asset(key=keys.GOLDEN_FILE)
def golden_file(golden: dg.ResourceParam[Golden]) -> dg.DataVersion:
    """The frozen golden file and its lock; the version is the hash of both."""
    return dg.DataVersion(golden.fingerprint())


@dg.asset(
    key=keys.GOLDEN_CASES, deps=[keys.GOLDEN_FILE], kinds={"jsonl", "polars"}, code_version="1"
)
def golden_cases(golden: dg.ResourceParam[Golden]) -> dg.MaterializeResult[pl.DataFrame]:
    """The frozen cases every arm is graded on: answerable, boundary, out of scope."""
    set_hash = golden.verify_lock()
    rows = [{**case.model_dump(), "set_hash": set_hash} for case in golden.read()]
    frame = pl.DataFrame(rows, schema=tables.GOLDEN_CASES)
    buckets = dict(frame["bucket"].value_counts().sort("bucket").iter_rows())
    return dg.MaterializeResult(
        value=frame,
        metadata={"case_count": frame.height, "cases_by_bucket": buckets, "set_hash": set_hash},
    )


@dg.asset(
    key=keys.EVAL_EMBEDDINGS,
    ins={"golden_cases": dg.AssetIn(key=keys.GOLDEN_CASES)},
    kinds={"polars"},
    code_version="1",
)
def eval_embeddings(
    golden_cases: pl.DataFrame, embedder: dg.ResourceParam[Embedder]
) -> dg.MaterializeResult[pl.DataFrame]:
    """Unit vectors of the golden questions, for the contamination guard only."""
    vectors = embedder.embed(golden_cases["question"].to_list())
    frame = golden_cases.select("case_id", "question").with_columns(
        pl.lit(embedder.fingerprint).alias("embedder_fingerprint"),
        pl.Series("vector", vectors.tolist(), dtype=pl.List(pl.Float32())),
    )
    return dg.MaterializeResult(
        value=frame, metadata={"case_count": frame.height, "dimension": int(vectors.shape[1])}
    )
