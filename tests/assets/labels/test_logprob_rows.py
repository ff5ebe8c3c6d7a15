"""What the writer refuses of rows that a teacher's logprobs gave."""

import json
import math
from pathlib import Path

import polars as pl
import pytest

from assets import tables
from assets.labels.logprob_rows import check_logprob_rows
from assets.labels.logprob_table import (
    AnswerTargets,
    Supplier,
    leave_hard,
    tabulate_targets,
    tokenise_examples,
)
from serving.errors import InvalidInputError
from tests.tiny_student import make_labelled, make_tokenizer

GROUPS = ((0, 5, 0), (5, 9, 1), (9, 20, 0))
MASSES = (math.log(0.5), math.log(0.2))


def tabulate(logp: float = math.log(0.5)) -> pl.DataFrame:
    """Two answers with groups at their first token, and one that is hard only."""
    items = list(tokenise_examples(make_labelled(3), make_tokenizer(), context_tokens=512))
    found = []
    for item in items[:2]:
        rest = len(item.answer.ids) - 1
        found.append(
            AnswerTargets(
                alignment="bytes",
                y_logp=[logp, *[None] * rest],
                tail_logp=[math.log(0.3), *[None] * rest],
                groups=[GROUPS, *[()] * rest],
                group_logprobs=[MASSES, *[()] * rest],
                vocabulary_id="v",
            )
        )
    found.append(leave_hard(len(items[2].answer.ids), reason="the texts differ"))
    supplier = Supplier(source="teacher", supplier_id="m", supplier_hash="h")
    return tabulate_targets(zip(items, found, strict=True), supplier, tokenizer=make_tokenizer())


def check(frame: pl.DataFrame, **options) -> None:
    examples = make_labelled(3)
    completions = dict(zip(examples["example_id"], examples["completion"], strict=True))
    check_logprob_rows(frame, completions=completions, tokenizer=make_tokenizer(), **options)


def test_rows_with_groups_and_without_any_target_are_taken():
    frame = tabulate()
    assert frame.schema == tables.TEACHER_LOGPROBS
    assert frame["soft_token_ratio"][0] == pytest.approx(1 / len(frame["token_ids"][0]))
    assert frame["soft_token_ratio"][2] == 0
    check(frame)


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"group_low": lambda v: v[1:]}, "one per answer token"),
        ({"group_logprobs": lambda v: [*v, []]}, "one per answer token"),
        ({"temperature": lambda _: 0.0}, "temperature 0"),
        ({"token_ids": lambda v: [v[0], 9, *v[2:]]}, "tokens of"),
        ({"group_low": lambda v: [[0, 4, 9], *v[1:]]}, "disjoint intervals"),
        ({"group_low": lambda v: [[0, 6, 5], *v[1:]]}, "disjoint intervals"),
        ({"group_high": lambda v: [[0, 9, 20], *v[1:]]}, "disjoint intervals"),
        ({"group_low": lambda v: [[-1, 5, 9], *v[1:]]}, "disjoint intervals"),
        ({"group_number": lambda v: [[0, 0, 0], *v[1:]]}, "an interval for each of 2"),
        ({"group_number": lambda v: [[0, 1, 2], *v[1:]]}, "an interval for each of 2"),
        ({"group_number": lambda v: [[0, 1], *v[1:]]}, "as many lows"),
        ({"group_logprobs": lambda v: [[-0.1, -0.2], *v[1:]]}, "sum to 1"),
        ({"group_logprobs": lambda v: [[-3.0, -3.0], *v[1:]]}, "sum to 1"),
        ({"group_logprobs": lambda v: [[math.nan, -3.0], *v[1:]]}, "sum to 1"),
        ({"tail_logp": lambda v: [math.log(0.9), *v[1:]]}, "sum to 1"),
        ({"tail_logp": lambda v: [None, *v[1:]]}, "y_logp and tail_logp"),
        ({"y_logp": lambda v: [None, *v[1:]]}, "y_logp and tail_logp"),
        ({"soft_ok": lambda v: [True, True, *v[2:]]}, "a soft target wherever"),
    ],
)
def test_the_writer_refuses(columns, match):
    rows = tabulate().to_dicts()
    for name, change in columns.items():
        rows[1][name] = change(rows[1][name])
    with pytest.raises(InvalidInputError, match=match) as caught:
        check(pl.DataFrame(rows, schema=tables.TEACHER_LOGPROBS))
    assert "e001" in str(caught.value)


@pytest.mark.parametrize(
    ("probability", "match"), [(0.04, "at least 0.05"), (0.99999, "before sampling")]
)
def test_a_teacher_that_finds_its_own_text_unlikely_or_certain_is_refused(probability, match):
    check(tabulate(math.log(0.5)))
    with pytest.raises(InvalidInputError, match=match):
        check(tabulate(math.log(probability)))


def test_the_floor_holds_for_each_source_apart():
    likely, unlikely = tabulate(math.log(0.9)), tabulate(math.log(0.01))
    mixed = pl.concat([likely.with_columns(source=pl.lit("scorer")), unlikely])
    with pytest.raises(InvalidInputError, match="source teacher"):
        check(mixed)


RECORDED = Path(__file__).with_name("recorded_scores.json")
"""What SmolLM2-135M-Instruct gave two answers of the embedded teacher, top 20 at temperature 1."""


def tabulate_recorded(shift: int = 0) -> pl.DataFrame:
    """The table as a scorer would have written it whose rows are off by `shift` places.

    It gives a token outside a row's top ids the hundredth of what these leave.
    """
    blank = tabulate().row(2, named=True)
    rows = []
    for number, row in enumerate(json.loads(RECORDED.read_text(encoding="utf-8"))):
        count = len(row["token_ids"])
        places = [(j - shift) % count for j in range(count)]
        top = [list(zip(row["top_ids"][j], row["top_logprobs"][j], strict=True)) for j in places]
        pairs = [
            read_row(dict(entries), token)
            for entries, token in zip(top, row["token_ids"], strict=True)
        ]
        rows.append(
            blank
            | {
                "example_id": f"r{number}",
                "token_ids": row["token_ids"],
                "top_ids": [[token for token, _ in entries] for entries in top],
                "top_logprobs": [[logp for _, logp in entries] for entries in top],
                "y_logp": [own for own, _ in pairs] if shift else row["y_logp"],
                "tail_logp": [tail for _, tail in pairs] if shift else row["tail_logp"],
                "soft_ok": [True] * count,
                "cite": [False] * count,
                "source": "scorer",
                "alignment": "exact",
                **{name: [[]] * count for name in blank if name.startswith("group_")},
            }
        )
    return pl.DataFrame(rows, schema=tables.TEACHER_LOGPROBS)


def read_row(top: dict[int, float], token: int) -> tuple[float, float]:
    """Return a token's logprob and the tail's under a row that was computed for any place."""
    rest = max(1e-7, 1 - sum(map(math.exp, top.values())))
    if token in top:
        return top[token], math.log(rest)
    return math.log(0.01 * rest), math.log(0.99 * rest)


@pytest.mark.parametrize(
    ("column", "match"),
    [("tail_logp", "a tail that sum to 1"), ("y_logp", r"has among the top ids, found -\d")],
)
@pytest.mark.parametrize("shift", [1, -1])
def test_a_column_rolled_by_one_row_is_refused(column, match, shift):
    rows = tabulate_recorded().to_dicts()
    rows[1][column] = rows[1][column][shift:] + rows[1][column][:shift]
    with pytest.raises(InvalidInputError, match=match) as caught:
        check_logprob_rows(pl.DataFrame(rows, schema=tables.TEACHER_LOGPROBS))
    assert "r1" in str(caught.value)


def test_a_real_table_is_taken_and_rolled_by_one_row_is_refused():
    check_logprob_rows(tabulate_recorded())
    for shift in (1, -1):
        with pytest.raises(InvalidInputError, match=r"at least 0\.05"):
            check_logprob_rows(tabulate_recorded(shift))


@pytest.mark.parametrize(("shift", "where"), [(1, "before"), (-1, "after")])
def test_a_shift_is_seen_where_the_floor_does_not_see_it(shift, where):
    """A floor that is lowered for an unlike scorer lets shifted rows pass too."""
    with pytest.raises(InvalidInputError, match=f"for the tokens {where} them"):
        check_logprob_rows(tabulate_recorded(shift), minimum_mean_probability=0.0)
