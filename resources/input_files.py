"""Inputs that the chain does not make: seed questions, golden cases, harvested questions.

The first two are JSON Lines written by hand, the third is Parquet written by curation. Belongs
here: reading and checking the files. Does not belong here: what is done with them.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serving.errors import HashMismatchError, InvalidInputError
from serving.hashing import file_sha256
from serving.pipeline.questions import fold_text

T = TypeVar("T", bound=BaseModel)

FILE_HELP = "convert the file to UTF-8 and make it readable"
LOCK_HELP = "restore the lock: one line, written by sha256sum, readable by you"


class SeedQuestion(BaseModel):
    """One line of the seed file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    question_id: str = Field(min_length=1)
    text: str = Field(min_length=1, max_length=4000)
    tags: tuple[str, ...] = ()


class GoldenCase(BaseModel):
    """One line of the golden file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    case_id: str = Field(min_length=1)
    bucket: Literal["answerable", "boundary", "out_of_scope"]
    question: str = Field(min_length=1, max_length=4000)
    must_include: tuple[str, ...] = ()
    gold_pages: tuple[str, ...] = ()
    gold_headings: tuple[str, ...] = ()
    should_refuse: bool
    behaviours: tuple[str, ...] = ()
    note: str = ""

    @model_validator(mode="after")
    def _has_gold_where_it_is_graded(self) -> Self:
        """Refuse cases that no answer, or every answer, would get right."""
        if self.bucket == "answerable" and self.should_refuse:
            raise ValueError("an answerable case must not have should_refuse true")
        gold = {"must_include": self.must_include, "gold_pages": self.gold_pages}
        for name, values in gold.items():
            if self.should_refuse and values:
                raise ValueError(f"should_refuse is true, so {name} must be empty")
            if not self.should_refuse and not values:
                raise ValueError(f"should_refuse is false, so {name} must name something")
            if not all(value.strip() for value in values):
                raise ValueError(f"{name} holds an empty text")
        return self


@dataclass(frozen=True)
class SeedFile:
    """The seed questions."""

    path: Path

    def fingerprint(self) -> str:
        """Return the identity of the file's bytes."""
        return _fingerprint(self.path, "seeds.path")

    def read(self) -> list[SeedQuestion]:
        """Return the questions in file order.

        Raises:
            InvalidInputError: a line is broken, an id or a text occurs twice (lines are named).
        """
        seen: dict[tuple[str, str], int] = {}
        questions = []
        for number, data in _read_lines(self.path, "seeds.path"):
            question = _validate(SeedQuestion, data, self.path, number)
            names = {"question_id": question.question_id, "text": fold_text(question.text)}
            for kind, name in names.items():
                if first := seen.get((kind, name)):
                    raise InvalidInputError(
                        f"reading seeds from {self.path.name}, line {number}",
                        expected="every question_id and every text once",
                        found=f"the {kind} {name!r}, already on line {first}",
                        next_step="remove or reword one of the two",
                    )
                seen[kind, name] = number
            questions.append(question)
        return questions


@dataclass(frozen=True)
class HarvestedFile:
    """The curated production questions; no path means that there are none."""

    path: Path | None
    schema: pl.Schema

    def fingerprint(self) -> str:
        """Return the identity of the file's bytes."""
        return "none" if self.path is None else _fingerprint(self.path, "seeds.harvested")

    def read(self) -> pl.DataFrame:
        """Return every decision, in file order.

        Raises:
            InvalidInputError: there is no such file, it is no Parquet, or columns are missing, too
                many or of another type (they are named).
        """
        if self.path is None:
            return self.schema.to_frame()
        _fingerprint(self.path, "seeds.harvested")
        try:
            frame = pl.read_parquet(io.BytesIO(self.path.read_bytes()))
        except (OSError, pl.exceptions.PolarsError) as error:
            raise InvalidInputError(
                f"reading {self.path}",
                expected="a readable Parquet file",
                found=str(error).splitlines()[0],
                next_step="export the curated questions again, or set seeds.harvested to null",
            ) from error
        if wrong := _describe_columns(frame.schema, self.schema):
            raise InvalidInputError(
                f"reading harvested questions from {self.path.name}",
                expected="the columns of HARVESTED_QUESTIONS in docs/reference/tables",
                found=wrong,
                next_step="export the curated questions with exactly these columns and types",
            )
        return frame.select(self.schema.names())


def _describe_columns(found: pl.Schema, declared: pl.Schema) -> str:
    """Say what is wrong with a file's columns; empty when nothing is. Their order is free."""
    missing = [f"{name} is missing" for name in declared if name not in found]
    extra = [f"{name} is not declared" for name in found if name not in declared]
    typed = [
        f"{name} is {found[name]} and not {declared[name]}"
        for name in declared
        if name in found and found[name] != declared[name]
    ]
    return "; ".join((*missing, *typed, *extra))


@dataclass(frozen=True)
class GoldenFile:
    """The frozen eval set and the lock beside it."""

    path: Path

    @property
    def lock_path(self) -> Path:
        """`golden_v1.jsonl` is locked by `golden_v1.lock`."""
        return self.path.with_suffix(".lock")

    def fingerprint(self) -> str:
        """Return the identity of the file's bytes and of its lock."""
        lock = _read_text(self.lock_path, LOCK_HELP) if self.lock_path.exists() else ""
        return f"{_fingerprint(self.path, 'eval.golden')}-{lock.strip()[:16]}"

    def verify_lock(self) -> str:
        """Return the sha256 of the golden file.

        Raises:
            HashMismatchError: the file is not the one that was frozen.
            InvalidInputError: there is no lock.
        """
        found = _fingerprint(self.path, "eval.golden")
        if not self.lock_path.exists():
            raise InvalidInputError(
                f"reading the lock of {self.path.name}",
                expected=f"{self.lock_path.name} holding the sha256 of the frozen file",
                found="no lock",
                next_step=f"freeze the set once: sha256sum {self.path.name} > "
                f"{self.lock_path.name} (in {self.path.parent})",
            )
        expected = _read_text(self.lock_path, LOCK_HELP).split()[0:1]
        if expected != [found]:
            raise HashMismatchError(
                f"comparing {self.path.name} with its lock",
                expected=f"sha256 {expected[0] if expected else '(empty lock)'}",
                found=found,
                next_step="restore the frozen file; a change is a new version beside the old one",
            )
        return found

    def read(self) -> list[GoldenCase]:
        """Return the cases in file order, after verifying the lock."""
        self.verify_lock()
        cases: dict[str, GoldenCase] = {}
        for number, data in _read_lines(self.path, "eval.golden"):
            case = _validate(GoldenCase, data, self.path, number)
            if case.case_id in cases:
                raise InvalidInputError(
                    f"reading golden cases from {self.path.name}, line {number}",
                    expected="every case_id once",
                    found=f"{case.case_id!r} again",
                    next_step="give the case its own id (in a new version of the set)",
                )
            cases[case.case_id] = case
        return list(cases.values())


def _fingerprint(path: Path, key: str) -> str:
    if not path.is_file():
        raise InvalidInputError(
            f"reading {path}",
            expected="a file",
            found="nothing there",
            next_step=f"set {key} in the config (relative to the config file)",
        )
    try:
        return file_sha256(path)
    except OSError as error:
        raise _cannot_read(path, str(error.strerror or error), FILE_HELP) from error


def _read_text(path: Path, next_step: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        found = f"byte {error.object[error.start]:#x} at offset {error.start}"
        raise _cannot_read(path, found, next_step) from error
    except OSError as error:
        raise _cannot_read(path, str(error.strerror or error), next_step) from error


def _cannot_read(path: Path, found: str, next_step: str) -> InvalidInputError:
    return InvalidInputError(
        f"reading {path}", expected="a file of UTF-8 text", found=found, next_step=next_step
    )


def _read_lines(path: Path, key: str) -> Iterator[tuple[int, Any]]:
    _fingerprint(path, key)
    found_any = False
    # Not splitlines: JSON strings may hold U+2028, U+0085 and others that it takes for line ends.
    for number, line in enumerate(_read_text(path, FILE_HELP).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:  # numbers and nesting have limits too
            told = str(error)
            if isinstance(error, json.JSONDecodeError):
                told = f"{error.msg} (column {error.colno})"
            raise InvalidInputError(
                f"reading {path.name}, line {number}",
                expected="one JSON object",
                found=f"{told}: {line[:80]!r}",
                next_step="mend that line",
            ) from error
        found_any = True
    if not found_any:
        raise InvalidInputError(
            f"reading {path}",
            expected="at least one JSON object",
            found="an empty file",
            next_step=f"write some, or set {key} to another file",
        )


def _validate(model: type[T], data: Any, path: Path, number: int) -> T:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        found = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'line'}: {e['msg']}" for e in error.errors()
        )
        raise InvalidInputError(
            f"reading {path.name}, line {number}",
            expected=f"keys {sorted(model.model_fields)} with legal values",
            found=found,
            next_step="mend that line",
        ) from None
