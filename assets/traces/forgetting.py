"""What grew from deleted traces: seeds, paraphrases, labels and training rows, and their texts.

A tombstone holds no text, so what descends from a trace is found and removed at the request, while
the tables still say what grew from what. Belongs here: finding and removing rows of finished
tables of later stages. Does not belong here: segments, hours and the tables of traces (`deleting`),
kept answers and vectors (`resources`), weights, which only a new training forgets.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import polars as pl

from assets.traces.deciding import open_decisions
from assets.traces.hours import find_folder, list_hours, scan_hours
from serving.files import atomic_path
from serving.home import Home

SEEDS = "seeds/seed_questions"
TEXT_COLUMNS = ("question", "text")
SHORTEST_QUOTE = 32  # characters: a shorter question stands in papers that are not about it


@dataclass(frozen=True, kw_only=True)
class Descendants:
    """What grew from deleted traces. `texts` are questions, as written anywhere."""

    trace_ids: frozenset[str]
    question_ids: frozenset[str]
    example_ids: frozenset[str]
    content_keys: frozenset[str]
    texts: frozenset[str]

    def match(self, columns: Collection[str]) -> pl.Expr | None:
        """Return the predicate of rows that have to go, never null; None: no column names any.

        A row with a question of its own is judged by that alone: a surviving question may share its
        answer's key.
        """
        named = {
            "source_trace_id": self.trace_ids,
            "seed_id": self.question_ids,
            "question_id": self.question_ids,
            "example_id": self.example_ids,
        }
        found = [pl.col(name).is_in(ids) for name, ids in named.items() if name in columns]
        if not found and "content_key" in columns:
            found = [pl.col("content_key").is_in(self.content_keys)]
        return pl.any_horizontal(found).fill_null(value=False) if found else None


def find_descendants(home: Home, trace_ids: Sequence[str]) -> Descendants:
    """Return what the finished tables say grew from these traces."""
    named = frozenset(trace_ids)
    questions = _collect(home, "source_trace_id", named, ("question_id",))
    questions |= _collect(home, "seed_id", questions, ("question_id",))
    examples = _collect(home, "seed_id", questions, ("example_id",))
    keys = _collect(home, "question_id", questions, ("content_key",))
    keys -= _collect(home, "question_id", questions, ("content_key",), is_others=True)
    texts = _collect(home, "seed_id", questions, TEXT_COLUMNS)
    texts |= _collect(home, "question_id", questions, TEXT_COLUMNS)
    texts |= _collect(home, "example_id", examples, TEXT_COLUMNS)
    rows = (scan_hours(list_hours(find_folder(home))), open_decisions(home).read().lazy())
    for table in rows:
        asked = table.filter(pl.col("trace_id").is_in(named)).select("question").collect()
        texts |= {*asked["question"].drop_nulls()}
    return Descendants(
        trace_ids=named,
        question_ids=questions,
        example_ids=examples,
        content_keys=keys,
        texts=texts,
    )


def purge_descendants(home: Home, descendants: Descendants) -> dict[str, int]:
    """Take descendants out of the finished tables at once; return the rows gone by table.

    The seeds go last: as long as they stand, a purge that was interrupted finds everything again.
    """
    gone = {}
    for path in sorted(_list_tables(home), key=lambda path: path == home.table(SEEDS)):
        schema = pl.read_parquet_schema(path)
        doomed = descendants.match(list(schema))
        if doomed is None:
            continue
        if count := _count(path, doomed):
            rows = pl.scan_parquet(path, hive_partitioning=False)
            _replace(path, rows.filter(~doomed).collect())
            gone[path.relative_to(home.lake).with_suffix("").as_posix()] = count
    return gone


def find_adapters(home: Home, descendants: Descendants) -> list[str]:
    """Return the adapters that must be trained again without these rows.

    Of an adapter whose training set is at hand its rows decide, of an earlier one its date: trained
    after a deleted question was accepted, it may have learned from it. One whose own files quote a
    deleted text is named too: they are content-addressed and stay what they are.
    """
    made = {_read_name(home, path.stem): path for path in _list_training_sets(home)}
    found = {
        name
        for name, path in made.items()
        if name and _count(path, pl.col("example_id").is_in(descendants.example_ids))
    }
    decisions = open_decisions(home).read().filter(pl.col("decision") == "accepted")
    accepted = decisions.filter(pl.col("trace_id").is_in(descendants.trace_ids))["decided_at"].min()
    telling = (text for text in descendants.texts if len(text) >= SHORTEST_QUOTE)
    quotes = [json.dumps(text, ensure_ascii=False)[1:-1].encode() for text in telling]
    for path in sorted(home.adapters.glob("*/provenance.json")):
        name = path.parent.name
        trained_at = json.loads(path.read_bytes()).get("trained_at")
        is_later = isinstance(accepted, datetime) and (
            not trained_at or datetime.fromisoformat(trained_at) >= accepted
        )
        if (is_later and name not in made) or _is_quoted(path.parent, quotes):
            found.add(name)
    return sorted(found)


def find_published(home: Home) -> list[str]:
    """Return the adapters of the release that CURRENT points at; none without a release."""
    pointer = home.releases / "CURRENT"
    if not pointer.is_file():
        return []
    release = home.releases / str(json.loads(pointer.read_bytes())["release_id"])
    students = json.loads((release / "manifest.json").read_bytes())["students"]
    return sorted(str(entry["adapter"]) for entry in students.values())


def _list_training_sets(home: Home) -> list[Path]:
    return sorted((home.lake / "students" / "training_set").glob("*.parquet"))


def _read_name(home: Home, recipe: str) -> str | None:
    path = home.table("students/student_adapter", recipe)
    return str(pl.read_parquet(path)["adapter"][0]) if path.is_file() else None


def _is_quoted(folder: Path, quotes: Sequence[bytes]) -> bool:
    texts = (path.read_bytes() for path in folder.iterdir() if path.suffix in {".json", ".yaml"})
    return any(quote in text for text in texts for quote in quotes)


def _count(path: Path, predicate: pl.Expr) -> int:
    rows = pl.scan_parquet(path, hive_partitioning=False).filter(predicate)
    return int(rows.select(pl.len()).collect().item())


def _list_tables(home: Home) -> Iterator[Path]:
    """Yield the tables of the stages that traces may grow into."""
    for path in home.lake.rglob("*.parquet"):
        if path.relative_to(home.lake).parts[0] != "traces":
            yield path


def _collect(
    home: Home,
    column: str,
    ids: frozenset[str],
    wanted: Sequence[str],
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
