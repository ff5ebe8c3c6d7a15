"""Expectations: a suite run over a table, and what broke it as data.

A suite is a list of Great Expectations' own expectations, each with a `description`: the promise in
words. `severity="critical"` (the default) stops what is made from the table, `"warning"` is only
shown. Belongs here: one run and its outcome, and promises that several tables make. Does not belong
here: what one table promises (`expectations.py` of its stage), how Dagster shows the outcome
(`check_results`).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import polars as pl

from serving.errors import InvalidInputError
from serving.schemas import MAXIMUM_QUESTION_CHARS
from serving.tracing.scrub import scrub

if TYPE_CHECKING:
    from great_expectations.core import ExpectationValidationResult
    from great_expectations.expectations.expectation import Expectation

MAXIMUM_FAILING_ROWS = 20
MAXIMUM_VALUE_CHARS = 120
CLOCK_SKEW = timedelta(minutes=5)  # how far two machines' clocks may differ
EARLIEST_DATE = datetime(2000, 1, 1, tzinfo=UTC)  # before it: a zero or a two-digit year
EMBEDDED_CHARS = 1000
"""About what an embedder of 256 tokens reads (all-MiniLM-L6-v2 does, at some four characters per
token of English): the guard compares no more of a question than that."""

LIMITS = ("min_value", "max_value", "value", "value_set", "regex", "mostly")
"""The arguments of an expectation that say where its limit is."""


@dataclass(frozen=True, kw_only=True)
class FailingRow:
    """A row that broke a promise: its id, and the offending value where values may be shown."""

    id: str
    value: str | None


@dataclass(frozen=True, kw_only=True)
class BrokenPromise:
    """An expectation that did not hold: observed against limit, and the first rows at fault.

    `rows` is empty for promises about the whole table, such as a share or a count.
    """

    statement: str
    is_critical: bool
    observed: str
    limit: str
    rows: tuple[FailingRow, ...]


@dataclass(frozen=True, kw_only=True)
class SuiteOutcome:
    """What became of a suite."""

    row_count: int
    statements: tuple[str, ...]
    broken: tuple[BrokenPromise, ...]

    @property
    def is_critical(self) -> bool:
        """True when a promise is broken that what is made from the table rests on."""
        return any(promise.is_critical for promise in self.broken)


def evaluate_suite(
    frame: pl.DataFrame,
    suite: Sequence["Expectation"],
    *,
    id_column: str,
    shows_values: bool = True,
    private_ids: Collection[str] = frozenset(),
) -> SuiteOutcome:
    """Run a suite over a frame.

    Args:
        frame: columns of scalars; 50,000 rows take well under a second.
        suite: expectations in the order they are reported in, each with its own `description`.
        id_column: names a row to a person.
        shows_values: false for private tables, whose failing rows are told by their ids alone.
        private_ids: rows of which the same holds, in a table that is not private as a whole.

    Raises:
        InvalidInputError: an expectation could not be evaluated, which is not the same as broken.
        ValueError: two expectations have one description, or one has none.
    """
    statements = tuple(str(expectation.description or "") for expectation in suite)
    if len({*statements} - {""}) != len(suite):
        raise ValueError(f"every expectation needs a description of its own, found {statements}")
    found = _evaluate(frame, suite, id_column, shows_message=shows_values and not private_ids)
    return SuiteOutcome(
        row_count=frame.height,
        statements=statements,
        broken=tuple(
            _describe_broken(
                statement,
                found[statement],
                id_column,
                shows_value=lambda row_id: shows_values and row_id not in private_ids,
            )
            for statement in statements
            if not found[statement].success
        ),
    )


def expect_no_nulls(columns: Sequence[str]) -> list["Expectation"]:
    """Return one critical expectation per column that must always be filled."""
    from great_expectations import expectations as gxe

    return [
        gxe.ExpectColumnValuesToNotBeNull(column=column, description=f"every row has {column}")
        for column in columns
    ]


def expect_askable(column: str, noun: str) -> list["Expectation"]:
    """Return what every text must be that is asked as a question, `noun` being what a row is."""
    from great_expectations import expectations as gxe

    return [
        gxe.ExpectColumnValueLengthsToBeBetween(
            column=column,
            min_value=1,
            max_value=MAXIMUM_QUESTION_CHARS,
            description=f"every {noun} has 1 to {MAXIMUM_QUESTION_CHARS} characters, like /ask",
        ),
        gxe.ExpectColumnValuesToMatchRegex(
            column=column,
            regex=r"\w",
            description=f"every {noun} has a letter or a digit in it",
        ),
    ]


def expect_read_whole(column: str, noun: str) -> "Expectation":
    """Return a warning about texts that are longer than what the guard compares of them."""
    from great_expectations import expectations as gxe

    return gxe.ExpectColumnValueLengthsToBeBetween(
        column=column,
        max_value=EMBEDDED_CHARS,
        severity="warning",
        description=f"the guard's embedder reads every {noun} to its end",
    )


def expect_own_ids(column: str, noun: str) -> "Expectation":
    """Return the critical expectation that no two rows share an id."""
    from great_expectations import expectations as gxe

    return gxe.ExpectColumnValuesToBeUnique(
        column=column, description=f"every {noun} has an id of its own"
    )


def _evaluate(
    frame: pl.DataFrame, suite: Sequence["Expectation"], id_column: str, *, shows_message: bool
) -> dict[str, "ExpectationValidationResult"]:
    """Return what came of each statement, every one of which could be evaluated."""
    found = {
        str(result.expectation_config.description): result
        for result in _validate(frame, suite, id_column)
        if result.expectation_config is not None
    }
    for expectation in suite:
        statement = str(expectation.description)
        _refuse_unevaluated(statement, found[statement], shows_message=shows_message)
    return found


def _validate(
    frame: pl.DataFrame, suite: Sequence["Expectation"], id_column: str
) -> Sequence["ExpectationValidationResult"]:
    import great_expectations as gx
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    in_memory = DataContextConfig(  # nothing is written, nothing is sent
        store_backend_defaults=InMemoryStoreBackendDefaults(),
        progress_bars=ProgressBarsConfig(globally=False),
        analytics_enabled=False,
    )
    context = gx.get_context(mode="ephemeral", project_config=in_memory)
    asset = context.data_sources.add_pandas("tables").add_dataframe_asset("table")
    batch = asset.add_batch_definition_whole_dataframe("rows").get_batch(
        {"dataframe": frame.to_pandas()}
    )
    evaluated = batch.validate(
        gx.ExpectationSuite(name="promises", expectations=list(suite)),
        result_format={
            "result_format": "COMPLETE",
            "unexpected_index_column_names": [id_column],
            "return_unexpected_index_query": False,
            "partial_unexpected_count": 0,
        },
    )
    return list(evaluated.results)


def _refuse_unevaluated(
    statement: str, result: "ExpectationValidationResult", *, shows_message: bool
) -> None:
    """Great Expectations reports a missing column as a broken promise; it is a broken suite."""
    info: Mapping[str, Any] = result.exception_info or {}
    causes = [info] if "raised_exception" in info else list(info.values())
    raised = next((cause for cause in causes if cause["raised_exception"]), None)
    if raised is None:
        return
    message = str(raised["exception_message"]).strip()
    raise InvalidInputError(
        f"evaluating the expectation {statement!r}",
        expected="a table with the columns and types that the expectation reads",
        found=message if shows_message else "an error that may quote private rows, so not shown",
        next_step="make suite and table agree: both are declared under assets/",
    )


def _describe_broken(
    statement: str,
    result: "ExpectationValidationResult",
    id_column: str,
    *,
    shows_value: Callable[[object], bool],
) -> BrokenPromise:
    configuration: Any = result.expectation_config
    found: Mapping[str, Any] = result.result
    kwargs = configuration.kwargs
    return BrokenPromise(
        statement=statement,
        is_critical=configuration.severity == "critical",
        observed=_write_observed(found),
        limit=", ".join(f"{n.replace('_', ' ')} {kwargs[n]}" for n in LIMITS if n in kwargs),
        rows=tuple(
            _describe_row(entry, id_column, shows_value=shows_value)
            for entry in (found.get("unexpected_index_list") or [])[:MAXIMUM_FAILING_ROWS]
        ),
    )


def _write_observed(found: Mapping[str, Any]) -> str:
    if "element_count" in found:
        return f"{found['unexpected_count']:,} of {found['element_count']:,} rows"
    value = found.get("observed_value")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _describe_row(
    entry: Mapping[str, Any], id_column: str, *, shows_value: Callable[[object], bool]
) -> FailingRow:
    row_id = entry[id_column]
    others = [value for column, value in entry.items() if column != id_column]
    value = others[0] if others else row_id
    return FailingRow(id=str(row_id), value=_shorten(value) if shows_value(row_id) else None)


def _shorten(value: object) -> str:
    """Return a value as it may stand in an event log: without secrets, and not too long."""
    text = scrub(str(value))
    return text if len(text) <= MAXIMUM_VALUE_CHARS else text[: MAXIMUM_VALUE_CHARS - 1] + "…"
