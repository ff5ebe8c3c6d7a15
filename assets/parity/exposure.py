"""Exposure: did the student train on the chunks a golden case is answered from?

A student that is right on seen chunks alone has learnt the documentation by heart; one that is as
right on unseen ones has learnt to read it. Belongs here: which case is which. Does not belong here:
what a slice is compared by (`comparison`).
"""

import polars as pl

from assets.parity.graders import is_gold_chunk, read_case, read_sources

SEEN, UNSEEN = "seen_chunk", "unseen_chunk"


def find_seen_chunks(labelled_examples: pl.DataFrame, teacher_answers: pl.DataFrame) -> set[str]:
    """Return the chunks that stood in the prompt of a training example.

    Validation and calibration examples do not count: the student never learns from them.
    """
    trained = teacher_answers.join(
        labelled_examples.filter(split="train"), on="content_key", how="semi"
    )
    retrieved = trained.select(pl.col("retrieved").explode().struct.field("chunk_id"))
    return set(retrieved["chunk_id"].drop_nulls())


def slice_by_exposure(
    golden_cases: pl.DataFrame, chunks: pl.DataFrame, seen_chunk_ids: set[str]
) -> pl.DataFrame:
    """Return case_id and slice: seen where the student trained on a chunk the case is graded by.

    Those are the chunks on a gold page under a gold heading (on the page, where the case names no
    heading). A case without gold chunks is in neither slice: there is nothing to have seen.
    """
    sources = read_sources(chunks)
    rows = []
    for row in golden_cases.iter_rows(named=True):
        case = read_case(row)
        gold = {i for i, source in sources.items() if is_gold_chunk(i, source, case)}
        if gold:
            rows.append((row["case_id"], SEEN if gold & seen_chunk_ids else UNSEEN))
    schema = {"case_id": pl.String(), "slice": pl.String()}
    return pl.DataFrame(rows, schema=schema, orient="row")
