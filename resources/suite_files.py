"""The suites' files: refusal and over-refusal cases, behaviours, anchors, ratings by people.

Belongs here: reading and checking the files and their locks. Does not belong here: making cases of
behaviours and anchors (`assets/eval_set`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from resources.input_files import GoldenFile
from serving.errors import InvalidInputError
from serving.hashing import content_hash, file_sha256

Text = Annotated[str, Field(min_length=1, max_length=4000)]
NOT_FROZEN = frozenset({"ratings"})
"""Ratings are appended as people give them; all other files are frozen by a lock."""


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SuiteLine(_Line):
    """A case of the refusal or the over-refusal suite."""

    case_id: Text
    question: Text
    kind: Text
    is_critical: bool
    should_refuse: bool
    must_include: tuple[str, ...] = ()
    gold_pages: tuple[str, ...] = ()
    core_id: Text


class Core(_Line):
    """What a behaviour is asked about, and the fact that answers it, where one does."""

    text: Text
    must_include: tuple[str, ...] = ()
    gold_pages: tuple[str, ...] = ()


class BehaviourLine(_Line):
    """A behaviour: every core is asked in every template, whose `{}` it fills."""

    behaviour_id: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    is_critical: bool
    should_refuse: bool
    description: Text
    templates: Annotated[tuple[Text, ...], Field(min_length=1)]
    cores: Annotated[tuple[Core, ...], Field(min_length=1)]

    @field_validator("templates")
    @classmethod
    def _has_one_place_for_the_core(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        if any(template.count("{}") != 1 or template.count("{") != 1 for template in templates):
            raise ValueError("each template needs exactly one {} and no other brace")
        return templates


class AnchorLine(_Line):
    """What the anchors of one core are built from."""

    anchor_id: Text
    question: Text
    heading: Text
    right: Text
    wrong: Text
    other_heading: Text
    other: Text


class RatingLine(_Line):
    """A person's rating of one anchor on one axis."""

    anchor_id: Text
    axis: Text
    score: Annotated[int, Field(ge=1, le=5)]
    rater_id: Text
    wave: date


LINES: Mapping[str, type[_Line]] = {
    "refusal": SuiteLine,
    "over_refusal": SuiteLine,
    "behaviours": BehaviourLine,
    "anchors": AnchorLine,
    "ratings": RatingLine,
}


@dataclass(frozen=True)
class SuiteFiles:
    """The files by suite; a suite that the configuration does not name has no cases."""

    paths: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def name(cls, **paths: Path | None) -> Self:
        """Return the files of the suites that are named."""
        return cls({suite: path for suite, path in paths.items() if path is not None})

    def fingerprint(self) -> str:
        """Return the identity of all files and locks."""
        return content_hash(
            {
                name: self._sha256(name) if name in NOT_FROZEN else GoldenFile(path).fingerprint()
                for name, path in self.paths.items()
            }
        )

    def read(self, name: str) -> tuple[str, list[dict[str, Any]]]:
        """Return the sha256 of a suite's file and its lines in order; nothing where none is named.

        Raises:
            HashMismatchError: the file is not the one that was frozen.
            InvalidInputError: there is no file or no lock, or a line is broken.
        """
        path = self.paths.get(name)
        if path is None:
            return "", []
        sha256 = self._sha256(name) if name in NOT_FROZEN else GoldenFile(path).verify_lock()
        lines = enumerate(path.read_text(encoding="utf-8").split("\n"), start=1)
        return sha256, [_read_line(name, path, n, text) for n, text in lines if text.strip()]

    def _sha256(self, name: str) -> str:
        path = self.paths[name]
        if not path.is_file():
            raise InvalidInputError(
                f"reading the suite {name!r}",
                expected=f"a file at {path}",
                found="nothing there",
                next_step=f"set eval.suites.{name} in the config, or leave it out",
            )
        return file_sha256(path)


def _read_line(name: str, path: Path, number: int, text: str) -> dict[str, Any]:
    model = LINES[name]
    try:
        return model.model_validate_json(text).model_dump()
    except ValidationError as error:
        found = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'line'}: {e['msg']}" for e in error.errors()
        )
        raise InvalidInputError(
            f"reading {path.name}, line {number}",
            expected=f"one JSON object with the keys {sorted(model.model_fields)}",
            found=found,
            next_step="mend that line in a new version of the suite, and freeze that",
        ) from None
