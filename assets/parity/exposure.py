"""Exposure: did the student train on the chunks a golden case is answered from?

A student that is right on seen chunks alone has learnt the documentation by heart; one that is as
right on unseen ones has learnt to read it. Belongs here: which example taught this very student,
which chunks it read there, which case is which. Does not belong here: what a slice is compared by
(`comparison`).
"""

import polars as pl

from assets import tables
from assets.parity.graders import is_gold_chunk, read_case, read_sources
from assets.students.lanes import CONTAMINATED, add_leak
from serving.home import Home

SEEN, UNSEEN = "seen_chunk", "unseen_chunk"
LEAK = "labels/contaminated_examples"


def list_offered(labelled_examples: pl.DataFrame, *, lane: str, home: Home) -> pl.DataFrame:
    """Return what a student of this lane may have learned from: the leak too where it has one.

    Raises:
        InvalidInputError: the lane has a leak, and its table is not there.
    """
    if lane != CONTAMINATED:
        return labelled_examples
    path = home.table(LEAK)
    leak = pl.read_parquet(path) if path.exists() else tables.LABELLED_EXAMPLES.to_frame()
    return add_leak(labelled_examples, leak)


def find_trained(training_set: pl.DataFrame, examples: pl.DataFrame) -> pl.DataFrame:
    """Return the examples that the student learned from.

    Labels are offered to every recipe, and each takes its own sample of what its student can learn;
    validation and calibration examples teach nothing.

    Args:
        training_set: of the student.
        examples: labelled_examples; with contaminated_examples where the recipe's lane has them.
    """
    return examples.join(training_set.filter(split="train"), on="example_id", how="semi")


def list_read_chunks(
    trained: pl.DataFrame,
    teacher_answers: pl.DataFrame,
    arm_answers: pl.DataFrame,
    *,
    sources: int | None,
) -> pl.DataFrame:
    """Return example_id and chunk_id: what stood in the prompts that the student was trained on.

    Args:
        trained: the examples it learned from.
        teacher_answers: know what was retrieved for a label.
        arm_answers: know it for a golden question, which a contaminated recipe trains on.
        sources: how many of the retrieved the student reads, the best ones; None: all.
    """
    of_labels = trained.join(teacher_answers.select("content_key", "retrieved"), on="content_key")
    asked = arm_answers.filter(pl.col("retrieved").is_not_null())
    asked = asked.unique("case_id", keep="first", maintain_order=True)
    of_leaks = trained.join(of_labels, on="example_id", how="anti").join(
        asked.select(pl.col("case_id").alias("question_id"), "retrieved"), on="question_id"
    )
    shown = pl.col("retrieved") if sources is None else pl.col("retrieved").list.head(sources)
    return (
        pl.concat([found.select("example_id", "retrieved") for found in (of_labels, of_leaks)])
        .select("example_id", shown)
        .explode("retrieved")
        .select("example_id", pl.col("retrieved").struct.field("chunk_id"))
        .drop_nulls()
    )


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
