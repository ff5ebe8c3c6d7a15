"""What a person sees while a run works."""

import io
import logging
import time
from types import SimpleNamespace

import dagster as dg
import pytest
from rich.console import Console

from orchestration.console import RunLines
from resources.progress import LogProgress, RichProgress, describe_seconds


def record(message: str, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("x", level, __file__, 1, message, None, None)


@pytest.fixture
def screen():
    text = io.StringIO()
    return SimpleNamespace(text=text, console=Console(file=text, width=100))


def test_messages_about_progress_are_lines(screen):
    lines = RunLines(screen.console)
    lines.emit(record("labelling: 5 of [10]"))
    lines.emit(record("[pipes] external process successfully opened dagster pipes."))
    lines.emit(record("noise", logging.DEBUG))
    assert screen.text.getvalue() == "  labelling: 5 of [10]\n"


def test_a_step_is_named_when_it_is_silent_for_long_and_only_then(screen):
    logger = logging.Logger("run", logging.DEBUG)
    logger.addHandler(RunLines(screen.console, silence_seconds=0.5))

    @dg.asset(key=["corpus", "pages"])
    def pages():
        pass

    @dg.asset(key=["corpus", "vector_index"], deps=[pages])
    def vector_index():
        time.sleep(1.0)

    definitions = dg.Definitions(
        assets=[pages, vector_index],
        jobs=[dg.define_asset_job("all_assets")],
        loggers={"console": dg.LoggerDefinition(lambda _: logger)},
    )
    with dg.DagsterInstance.ephemeral() as instance:
        definitions.resolve_job_def("all_assets").execute_in_process(
            instance=instance, run_config={"loggers": {"console": {}}}
        )
    time.sleep(0.6)
    lines = [line.strip() for line in screen.text.getvalue().splitlines()]
    assert lines == ["✓ corpus/pages", "… corpus/vector_index", "✓ corpus/vector_index"]


def test_a_closed_bar_is_gone_and_may_be_drawn_again():
    text = io.StringIO()
    progress = RichProgress(Console(file=text, force_terminal=True))
    progress.advance("labelling", 1, 10)
    progress.close()
    progress.close()
    before = text.getvalue()
    time.sleep(0.2)
    assert text.getvalue() == before
    progress.advance("judging", 1, 1)


def log_with_clock(caplog, reports: list[tuple[float, int]], total: int) -> list[str]:
    """The lines that reports at these seconds become."""
    seconds = iter([at for at, _ in reports])
    logger = logging.getLogger("progress-test")
    progress = LogProgress(logger, clock=lambda: next(seconds))
    with caplog.at_level(logging.INFO, logger="progress-test"):
        for _, done in reports:
            progress.advance("labelling", done, total, "$1.20 of 25.00")
    return [record.getMessage() for record in caplog.records]


def test_log_lines_say_how_fast_it_goes_when_it_ends_and_what_it_costs(caplog):
    reports = [(0, 0), (1, 10), (6, 60), (12, 120), (100, 1000)]
    assert log_with_clock(caplog, reports, 1000) == [
        "labelling: 60 of 1000 (10/s, 1 min 34 s left) $1.20 of 25.00",
        "labelling: 120 of 1000 (10/s, 1 min 28 s left) $1.20 of 25.00",
        "labelling: 1000 of 1000 (10/s) $1.20 of 25.00",
    ]


def test_answers_from_the_cache_promise_no_early_end(caplog):
    reports = [(0, 0), (10, 9000), (80, 9070), (150, 9140)]
    last = log_with_clock(caplog, reports, 10000)[-1]
    assert last == "labelling: 9140 of 10000 (1/s, 14 min 20 s left) $1.20 of 25.00"


def test_work_that_begins_again_is_measured_from_its_own_start(caplog):
    reports = [(0, 0), (10, 100), (20, 0), (30, 50)]
    assert "(5/s, 10 s left)" in log_with_clock(caplog, reports, 100)[-1]


def test_durations_are_said_as_people_say_them():
    said = [describe_seconds(seconds) for seconds in (0.4, 42, 200, 7500)]
    assert said == ["0 s", "42 s", "3 min 20 s", "2 h 5 min"]
