"""What a person sees while a run works."""

import io
import logging
import time
from types import SimpleNamespace

import dagster as dg
import pytest
from rich.console import Console

from orchestration.console import RunLines
from resources.progress import RichProgress


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
