"""Which labels a student with rules is taught: those that its rules leave to its model.

Belongs here: leaving out and shortening labelled examples. Does not belong here: the rules
(`serving/models/student_rules`), tokens and the sample (`training_set`).
"""

from collections.abc import Sequence

import polars as pl

from assets.labels.refusals import BEST_SCORE
from serving.models.protocols import Message
from serving.models.student_rules import StudentRules
from serving.pipeline.prompt import CITATION_PATTERN, read_sources_text
from serving.pipeline.source_list import find_sources, keep_sources


def choose_taught(
    examples: pl.DataFrame, answers: pl.DataFrame, rules: StudentRules
) -> pl.DataFrame:
    """Return the labelled examples as the student's model will see them.

    A question that the rule refuses is never asked, so its label teaches nothing. With fewer
    sources than the teacher had, an answer that cites one of the others is left out: it would teach
    to say what no source says.

    Args:
        examples: labelled_examples, of any lane.
        answers: teacher_answers, which know the scores; a question without a row there is kept.
        rules: of the student.
    """
    if rules.refusal is not None:
        weak = answers.filter(rules.refusal.minimum_score > BEST_SCORE)
        examples = examples.join(weak.select("question_id"), on="question_id", how="anti")
    if rules.sources is None:
        return examples
    shortened = [
        row | {"messages": keep_sources(row["messages"], rules.sources)}
        for row in examples.iter_rows(named=True)
        if cites_only_the_first(row["messages"], row["completion"], rules.sources)
    ]
    return pl.DataFrame(shortened, schema=examples.schema)


def cites_only_the_first(messages: Sequence[Message], completion: str, count: int) -> bool:
    """Return whether an answer cites none but the first `count` sources of its prompt."""
    legal = {label for _, label in find_sources(read_sources_text(messages))[:count]}
    return {match["id"] for match in CITATION_PATTERN.finditer(completion)} <= legal
