"""Labelled examples as the token ids a student is trained on.

Belongs here: tokenising, the seeded sample, what is dropped and why. Does not belong here: batching
and soft targets (`training`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from assets import tables
from assets.labels.answer_tokens import encode_answer, token_hash
from serving.errors import InvalidInputError
from serving.hashing import content_hash
from serving.models.chat_tokens import Activation, split_chat, tokenizer_fingerprint
from serving.pipeline.prompt import REFUSAL_WORD


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """The tokenised examples and the ones left out.

    `too_long` are example ids whose prompt and answer exceed the context: dropped whole, never cut.
    `not_sampled` counts train examples beyond `max_examples`.
    """

    frame: pl.DataFrame
    too_long: tuple[str, ...]
    not_sampled: int

    @property
    def refusal_ratio(self) -> float:
        """Share of refusals among the train examples."""
        train = self.frame.filter(pl.col("split") == "train")
        return int(train["refused"].sum()) / max(1, train.height)


def build_training_set(
    examples: pl.DataFrame,
    tokenizer: Any,
    *,
    context_tokens: int,
    activation: Activation = "question",
    max_examples: int | None = None,
    maximum_refusal_ratio: float | None = None,
    seed: int = 0,
) -> TrainingSet:
    """Tokenise labelled examples (all splits), drop what does not fit, sample the train split.

    Args:
        examples: columns example_id, messages, completion, split, trainable, optional weight and
            teacher_id.
        tokenizer: the student's.
        context_tokens: prompt and answer together must fit in it.
        activation: where the prompt is split (`question`) or that it is not (`all`).
        max_examples: size of the train sample.
        maximum_refusal_ratio: see `sample_train_split`.
        seed: of the sample.

    Raises:
        InvalidInputError: a column is missing, ids repeat, an answer is empty, one is of a teacher
            whose terms do not allow training, or several teachers answered.
    """
    _check_examples(examples)
    require_one_teacher(examples)
    fingerprint = tokenizer_fingerprint(tokenizer)
    rows, too_long = [], []
    for example in examples.sort("example_id").iter_rows(named=True):
        row = _tokenise(example, tokenizer, activation, fingerprint)
        size = sum(len(row[name]) for name in ("prefix_ids", "suffix_ids", "answer_ids"))
        if size > context_tokens:
            too_long.append(row["example_id"])
        else:
            rows.append(row)
    frame = pl.DataFrame(rows, schema=tables.TRAINING_SET)
    sampled = sample_train_split(
        frame, max_examples, seed, maximum_refusal_ratio=maximum_refusal_ratio
    )
    return TrainingSet(
        frame=sampled,
        too_long=tuple(too_long),
        not_sampled=frame.height - sampled.height,
    )


def refuse_empty(recipe: str, frame: pl.DataFrame, counts: Mapping[str, int]) -> None:
    """Refuse a training set with nothing to train on, and say where the labels went.

    Args:
        recipe: whose set it is.
        frame: its rows.
        counts: of labels, by what became of them, as in the metadata of the asset.

    Raises:
        InvalidInputError: no row is of the split train.
    """
    if not frame.filter(pl.col("split") == "train").is_empty():
        return
    told = (f"{name.removesuffix('_count').replace('_', ' ')} {n}" for name, n in counts.items())
    raise InvalidInputError(
        f"building the training set of the recipe {recipe}",
        expected="at least one example in the split train",
        found=f"none ({', '.join(told)})",
        next_step="write more seeds; where examples are too long, raise context_tokens of the "
        "student in the config",
    )


def require_one_teacher(examples: pl.DataFrame) -> None:
    """Refuse labels of several teachers: a student of two teachers imitates neither.

    A change of teacher opens an epoch of labels: the questions are labelled again.

    Raises:
        InvalidInputError: names the teachers and how many labels each gave.
    """
    if "teacher_id" not in examples.columns:
        return
    counts = dict(examples["teacher_id"].value_counts().sort("teacher_id").iter_rows())
    if len(counts) > 1:
        raise InvalidInputError(
            "building the training set",
            expected="labels of one teacher",
            found=", ".join(f"{name} ({count} labels)" for name, count in counts.items()),
            next_step="label again with `understudy run --select labels`: the answers of the "
            "configured teacher that were bought before are kept",
        )


def sample_train_split(
    frame: pl.DataFrame,
    max_examples: int | None,
    seed: int,
    *,
    maximum_refusal_ratio: float | None = None,
) -> pl.DataFrame:
    """Keep a seeded sample of the train rows; other splits stay whole.

    Rows are drawn by the hash of (seed, example id): adding an example never reshuffles the others.

    Args:
        frame: columns example_id, split and refused.
        max_examples: size of the sample; None is all.
        seed: of the sample.
        maximum_refusal_ratio: share of refusals above which refusals are left out; where it binds,
            answers take their places. None keeps the share that the rows have.
    """
    train = frame.filter(pl.col("split") == "train")
    refusals, answers = train.filter(pl.col("refused")), train.filter(~pl.col("refused"))
    size = train.height if max_examples is None else min(max_examples, train.height)
    refusal_count = round(size * refusals.height / max(1, train.height))
    if maximum_refusal_ratio is not None:
        most = maximum_refusal_ratio * min(size, answers.height / (1 - maximum_refusal_ratio))
        refusal_count = min(refusal_count, round(most))
    kept = {
        *_draw(refusals, refusal_count, seed),
        *_draw(answers, min(size - refusal_count, answers.height), seed),
    }
    return frame.filter((pl.col("split") != "train") | pl.col("example_id").is_in(list(kept)))


def _draw(rows: pl.DataFrame, count: int, seed: int) -> Iterator[str]:
    ids: list[str] = rows["example_id"].to_list()
    yield from sorted(ids, key=lambda example_id: content_hash(seed, example_id))[:count]


def _tokenise(
    example: Mapping[str, Any], tokenizer: Any, activation: Activation, fingerprint: str
) -> dict[str, Any]:
    chat = split_chat(tokenizer, example["messages"], activation=activation)
    answer = encode_answer(tokenizer, example["completion"])
    return {
        "example_id": example["example_id"],
        "split": example["split"],
        "refused": example["completion"].strip() == REFUSAL_WORD,
        "weight": example.get("weight", 1.0),
        "prefix_ids": list(chat.prefix_ids),
        "suffix_ids": list(chat.suffix_ids),
        "answer_ids": list(answer.ids),
        "cite_mask": list(answer.cite_mask),
        "token_hash": token_hash(fingerprint, chat.whole, answer.ids),
    }


def _check_examples(examples: pl.DataFrame) -> None:
    needed = ("example_id", "messages", "completion", "split", "trainable")
    missing = set(needed) - set(examples.columns)
    repeated: list[str] = []
    if not missing:
        repeated = examples.filter(pl.col("example_id").is_duplicated())["example_id"].to_list()
    if missing or repeated:
        raise InvalidInputError(
            "building the training set",
            expected=f"columns {', '.join(needed)} and distinct example ids",
            found=f"no column {sorted(missing)}" if missing else f"repeated id {repeated[0]}",
            next_step="materialize labels/labelled_examples again",
        )
    forbidden = examples.filter(~pl.col("trainable").fill_null(value=False))
    if not forbidden.is_empty():
        raise InvalidInputError(
            "building the training set",
            expected="examples of teachers whose terms allow training on their answers",
            found=f"{forbidden.height} that may not train, first {forbidden['example_id'][0]}",
            next_step="label again with another teacher, or set teacher.trainable if its terms "
            "allow it",
        )
