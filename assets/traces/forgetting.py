"""What grew from deleted traces: seeds, paraphrases, labels and training rows, and their texts.

What descends from a trace is found and removed at the request, while the tables still say what
grew from what. Belongs here: finding and removing rows of finished tables of later stages. Does not
belong here: segments, hours and the tables of traces (`deleting`), kept answers and vectors
(`resources`), weights (`tainting`).
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import polars as pl

from assets.traces.deciding import open_decisions
from assets.traces.hours import find_folder, list_hours, scan_hours
from serving.files import atomic_path
from serving.home import Home
from serving.pipeline.questions import normalise_question

QUESTION_COLUMNS = ("question", "text")
ANSWER_COLUMNS = ("raw", "answer", "completion", "label_answer")
SHORTEST_QUOTE = 32  # characters: a shorter text stands in papers that are not about it


@dataclass(frozen=True, kw_only=True)
class Descendants:
    """What grew from deleted traces, by its ids and in its words.

    `texts` are questions, as written anywhere and as models are asked them; `answers` what was
    answered to them; `rationales` what the judge said of those answers and of no other.
    """

    trace_ids: frozenset[str] = frozenset()
    question_ids: frozenset[str] = frozenset()
    example_ids: frozenset[str] = frozenset()
    texts: frozenset[str] = frozenset()
    answers: frozenset[str] = frozenset()
    rationales: frozenset[str] = frozenset()

    @property
    def quotes(self) -> frozenset[str]:
        """The texts that give away what quotes them."""
        return frozenset(t for t in self.texts | self.rationales if len(t) >= SHORTEST_QUOTE)

    def match(self, columns: Collection[str]) -> pl.Expr | None:
        """Return the predicate of rows that have to go, never null; None: no column names any."""
        named = {
            "source_trace_id": self.trace_ids,
            "seed_id": self.question_ids,
            "question_id": self.question_ids,
            "example_id": self.example_ids,
        }
        found = [pl.col(name).is_in(ids) for name, ids in named.items() if name in columns]
        return pl.any_horizontal(found).fill_null(value=False) if found else None

    def unite(self, other: "Descendants") -> "Descendants":
        """Return what is in either."""
        return Descendants(**{n: getattr(self, n) | getattr(other, n) for n in FOUND})


FOUND = tuple(field.name for field in fields(Descendants))


def find_descendants(home: Home, known: Descendants) -> Descendants:
    """Return what the finished tables say grew from the traces of `known`, and all of `known`."""
    questions = known.question_ids
    questions |= _collect(home, "source_trace_id", known.trace_ids, ("question_id",))
    questions |= _collect(home, "seed_id", questions, ("question_id",))
    examples = known.example_ids | _collect(home, "seed_id", questions, ("example_id",))
    by_id = {"seed_id": questions, "question_id": questions, "example_id": examples}

    def collect(wanted: Collection[str]) -> frozenset[str]:
        found = (_collect(home, column, ids, wanted) for column, ids in by_id.items())
        return frozenset[str]().union(*found)

    texts = collect(QUESTION_COLUMNS) | _collect_asked(home, known.trace_ids)
    rationales = _collect(home, "question_id", questions, ("rationale",))
    rationales -= _collect(home, "question_id", questions, ("rationale",), is_others=True)
    return known.unite(
        Descendants(
            question_ids=questions,
            example_ids=examples,
            texts=texts.union(map(normalise_question, texts)),
            answers=collect(ANSWER_COLUMNS),
            rationales=rationales,
        )
    )


def count_descendants(home: Home, descendants: Descendants) -> dict[str, int]:
    """Return how many rows of which finished tables have to go."""
    return {_name(home, path): count for path, _, count in _find_doomed(home, descendants)}


def purge_descendants(home: Home, descendants: Descendants) -> dict[str, int]:
    """Take descendants out of the finished tables at once; return the rows gone by table."""
    gone = {}
    for path, doomed, count in _find_doomed(home, descendants):
        rows = pl.scan_parquet(path, hive_partitioning=False)
        _replace(path, rows.filter(~doomed).collect())
        gone[_name(home, path)] = count
    return gone


def count_rows(path: Path, predicate: pl.Expr) -> int:
    """Return how many rows of a table a predicate holds for."""
    rows = pl.scan_parquet(path, hive_partitioning=False).filter(predicate)
    return int(rows.select(pl.len()).collect().item())


def _find_doomed(home: Home, descendants: Descendants) -> Iterator[tuple[Path, pl.Expr, int]]:
    """Yield the tables that hold descendants, which rows those are, and how many."""
    for path in sorted(_list_tables(home)):
        doomed = descendants.match(list(pl.read_parquet_schema(path)))
        if doomed is not None and (count := count_rows(path, doomed)):
            yield path, doomed, count


def _name(home: Home, path: Path) -> str:
    return path.relative_to(home.lake).with_suffix("").as_posix()


def _collect_asked(home: Home, trace_ids: frozenset[str]) -> frozenset[str]:
    """Return the questions of traces, as the hours and the decisions have them."""
    named = pl.col("trace_id").is_in(trace_ids)
    rows = (scan_hours(list_hours(find_folder(home))), open_decisions(home).read().lazy())
    asked = (table.filter(named).select("question").collect() for table in rows)
    return frozenset(text for frame in asked for text in frame["question"].drop_nulls())


def _list_tables(home: Home) -> Iterator[Path]:
    """Yield the tables of the stages that traces may grow into."""
    for path in home.lake.rglob("*.parquet"):
        if path.relative_to(home.lake).parts[0] != "traces":
            yield path


def _collect(
    home: Home,
    column: str,
    ids: frozenset[str],
    wanted: Collection[str],
    *,
    is_others: bool = False,
) -> frozenset[str]:
    """Return the values of `wanted` in rows whose `column` is one of `ids`, or is none of them."""
    found: set[str] = set()
    for path in _list_tables(home) if ids else ():
        schema = pl.read_parquet_schema(path)
        named = [name for name in wanted if schema.get(name) == pl.String]
        if not named or column not in schema:
            continue
        is_chosen = pl.col(column).is_in(ids) != is_others
        rows = pl.scan_parquet(path, hive_partitioning=False).filter(is_chosen)
        frame = rows.select(named).collect()
        found.update(text for name in named for text in frame[name].drop_nulls())
    return frozenset(found)


def _replace(path: Path, frame: pl.DataFrame) -> None:
    mode = path.stat().st_mode & 0o777
    with atomic_path(path) as temporary:
        frame.write_parquet(temporary, compression="zstd", statistics=True)
        temporary.chmod(mode)
