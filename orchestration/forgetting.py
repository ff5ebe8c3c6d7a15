"""What a deletion reaches beside the tables: kept answers and kept vectors.

Belongs here: handing what grew from deleted traces to the stores. Does not belong here: finding it
(`assets/traces/forgetting`), how a store erases (`resources`).
"""

from collections.abc import Sequence

import polars as pl

from assets.paraphrases.rewriting import write_rewrite_request
from assets.traces.forgetting import Descendants
from assets.traces.requesting import Forget
from orchestration.config import Config
from resources.answer_store import forget_answers
from resources.embeddings import forget_vectors
from resources.scores import forget_scores
from serving.home import Home
from serving.pipeline.statements import split_statements


def open_stores(config: Config) -> Sequence[Forget]:
    """Return what removes from each store what it keeps of a deletion, and counts it."""
    home = Home(config.home)
    count = config.seeds.paraphrases_per_medoid

    def forget_kept_answers(gone: Descendants) -> int:
        rewordings = (
            write_rewrite_request(text, count=count, temperature=0, seed=0).messages[-1]["content"]
            for text in gone.texts
        )
        return forget_answers(
            home.answer_cache, asked={*gone.texts, *rewordings}, quotes=gone.quotes
        )

    def forget_kept_vectors(gone: Descendants) -> int:
        said = {s.text for answer in gone.answers for s in split_statements(answer)}
        return forget_vectors(home.embeddings, gone.texts | said)

    def forget_kept_scores(gone: Descendants) -> int:
        return forget_scores(home.answer_cache) if gone.texts or gone.answers else 0

    return forget_kept_answers, forget_kept_vectors, forget_kept_scores


def hash_training_set(frame: pl.DataFrame) -> str:
    """Return what an adapter's papers call `data_hash` of the rows it was trained on."""
    from assets.students.adapters import hash_training_inputs  # torch comes with it

    return hash_training_inputs(frame, None)[0]
