"""When a seed was added is recorded once: what changes nothing of a question changes no date."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from assets import keys, tables
from assets.seeds.assets import read_times_added, seed_questions, tabulate_handwritten
from resources.last_tables import LastTables
from serving.home import Home
from tests.counting_embedder import CountingEmbedder

FIRST = datetime(2026, 5, 1, tzinfo=UTC)
LATER = FIRST + timedelta(days=30)


@dataclass(frozen=True)
class WrittenSeed:
    question_id: str
    text: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Given:
    """What a file holds."""

    content: object

    def read(self) -> object:
        return self.content


KILN = WrittenSeed("s1", "How hot is the kiln?", ("kiln",))
GLAZE = WrittenSeed("s2", "Which glaze is matt?")


def added(seeds: list[WrittenSeed], last: pl.DataFrame) -> list[datetime]:
    return tabulate_handwritten(seeds, added_at=LATER, known=read_times_added(last))[
        "added_at"
    ].to_list()


@pytest.fixture
def last() -> pl.DataFrame:
    return tabulate_handwritten([KILN, GLAZE], added_at=FIRST)


def test_a_question_that_was_there_keeps_its_date_and_a_new_one_gets_this_runs(last):
    new = WrittenSeed("s3", "Where is the shelf?")
    assert added([new, GLAZE, KILN], last) == [LATER, FIRST, FIRST]


def test_tags_and_spacing_make_no_other_question(last):
    assert added([WrittenSeed("s1", "  How hot is  the kiln? ", ("heat",))], last) == [FIRST]


def test_another_text_or_another_id_is_another_question(last):
    reworded = WrittenSeed("s1", "How warm is the kiln?")
    assert added([reworded, WrittenSeed("s9", KILN.text)], last) == [LATER, LATER]


def test_a_harvested_question_of_the_same_words_lends_no_date(last):
    harvested = last.with_columns(source=pl.lit("harvested"))
    assert added([KILN], harvested) == [LATER]


def test_a_date_from_a_wrong_clock_is_mended(last):
    ahead = last.with_columns(added_at=pl.col("added_at") + pl.duration(days=400))
    undated = last.with_columns(added_at=pl.lit(None, dtype=last.schema["added_at"]))
    assert added([KILN], ahead) == added([KILN], undated) == [LATER]


def test_the_table_of_a_second_run_is_that_of_the_first(tmp_path: Path):
    home = Home(tmp_path)
    make = seed_questions.op.compute_fn.decorated_fn

    def run(*seeds: WrittenSeed) -> pl.DataFrame:
        harvested = Given(tables.HARVESTED_QUESTIONS.to_frame())
        recorded = LastTables(home, tables.BY_KEY)
        frame = make(Given(list(seeds)), harvested, CountingEmbedder(), recorded).value
        path = home.table(keys.SEED_QUESTIONS.to_user_string())
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(path)
        return frame

    first = run(KILN)
    second = run(KILN, GLAZE)
    assert second.head(1).equals(first)
    assert second["added_at"][1] > first["added_at"][0]
    assert run(KILN, GLAZE).equals(second)
