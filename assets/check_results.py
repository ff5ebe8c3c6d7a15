"""Check results: the outcome of a suite as Dagster stores and shows it.

Belongs here: the one form all suites are reported in. Does not belong here: what is promised
(`expectations.py` of a stage), how a suite is run (`expectations`).
"""

import dagster as dg

from assets.expectations import BrokenPromise, FailingRow, SuiteOutcome

SHOWN_IDS = 5


def report_outcome(outcome: SuiteOutcome) -> dg.AssetCheckResult:
    """Return a check result: ERROR when a critical promise is broken, else WARN.

    Its metadata hold every promise, and for each broken one the observed value against the limit
    and at most 20 rows: as a table to read (`broken_promises`) and as JSON (`failing_rows`).
    """
    broken = outcome.broken
    metadata: dict[str, int | dg.MarkdownMetadataValue | dg.JsonMetadataValue] = {
        "row_count": outcome.row_count,
        "expectation_count": len(outcome.statements),
        "broken_count": len(broken),
        "promises": dg.MetadataValue.md(_list_promises(outcome)),
    }
    if broken:
        metadata["broken_promises"] = dg.MetadataValue.md(render_broken(broken))
        metadata["failing_rows"] = dg.MetadataValue.json(
            {p.statement: [{"id": r.id, "value": r.value} for r in p.rows] for p in broken}
        )
    severity = dg.AssetCheckSeverity
    return dg.AssetCheckResult(
        passed=not broken,
        severity=severity.ERROR if outcome.is_critical or not broken else severity.WARN,
        description=_summarise(outcome),
        metadata=metadata,
    )


def render_broken(broken: tuple[BrokenPromise, ...]) -> str:
    """Return the broken promises as a Markdown table."""
    lines = ["| promise | weight | observed | limit | rows |", "|---|---|---|---|---|"]
    for promise in broken:
        cells = (
            promise.statement,
            "blocks" if promise.is_critical else "warns",
            promise.observed,
            _quote(promise.limit) if promise.limit else "",
            "; ".join(map(_quote_row, promise.rows)),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _quote_row(row: FailingRow) -> str:
    value = row.value if row.value != row.id else None
    return _quote(row.id) if value is None else f"{_quote(row.id)}: {_quote(value)}"


def _quote(text: str) -> str:
    """Return a value as code that no line break and no backtick in it can end."""
    return f"`{' '.join(text.replace('`', chr(39)).split()) or ' '}`"


def _list_promises(outcome: SuiteOutcome) -> str:
    broken = {promise.statement for promise in outcome.broken}
    return "\n".join(
        f"- {'**broken**: ' if statement in broken else ''}{statement}"
        for statement in outcome.statements
    )


def _summarise(outcome: SuiteOutcome) -> str:
    rows = f"{outcome.row_count:,} rows"
    if not outcome.broken:
        return f"{len(outcome.statements)} promises hold for {rows}"
    told = "; ".join(map(_summarise_broken, outcome.broken))
    return f"{len(outcome.broken)} of {len(outcome.statements)} promises broken in {rows}: {told}"


def _summarise_broken(promise: BrokenPromise) -> str:
    ids = list(dict.fromkeys(row.id for row in promise.rows))
    more = ", …" if len(ids) > SHOWN_IDS else ""
    about = f": {', '.join(ids[:SHOWN_IDS])}{more}" if ids else f", limit {promise.limit}"
    return f"{promise.statement} (found {promise.observed}{about})"
