"""The validator spends nothing on what is too long to be shown."""

import pytest

from serving.pipeline import validator
from serving.pipeline.prompt import PromptFormat, read_answer
from serving.pipeline.validator import ValidatorPolicy, validate
from tests.serving.fakes import GOOD, HITS


def test_an_answer_of_megabytes_is_refused_without_being_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    split: list[int] = []
    real = validator.split_statements
    monkeypatch.setattr(
        validator, "split_statements", lambda text: split.append(len(text)) or real(text)
    )
    endless = read_answer("word. " * 900_000, HITS, PromptFormat())
    assert str(validate(endless, HITS, ValidatorPolicy())) == "too_long"
    assert split == []
    assert validate(read_answer(GOOD, HITS, PromptFormat()), HITS, ValidatorPolicy()).is_valid
    assert len(split) == 1
