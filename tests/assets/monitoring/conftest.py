"""Two quiet weeks of served traffic, and the real embedder, shared by every test."""

import polars as pl
import pytest

from bench.false_alarms import RememberedEmbedder
from serving.models.embedded import resolve_model
from serving.models.embedder import SentenceEmbedder
from tests.assets.monitoring.weeks import START, WEEK, put_together, serve_week


@pytest.fixture(scope="session")
def week_before(tmp_path_factory) -> pl.DataFrame:
    return serve_week(tmp_path_factory.mktemp("before") / "home", START, seed=1)


@pytest.fixture(scope="session")
def quiet(tmp_path_factory, week_before):
    now = serve_week(tmp_path_factory.mktemp("quiet") / "home", START + WEEK, seed=2)
    return put_together(week_before, now, start=START + WEEK)


@pytest.fixture
def serve_faulty(tmp_path, week_before):
    """Serve the second week with something wrong, after the quiet first one."""

    def serve(faults):
        now = serve_week(tmp_path / "home", START + WEEK, seed=2, faults=faults)
        return put_together(week_before, now, start=START + WEEK)

    return serve


@pytest.fixture(scope="session")
def embedder(tmp_path_factory):
    model = "sentence-transformers/all-MiniLM-L6-v2"
    resolved = resolve_model(model, "embedded", tmp_path_factory.mktemp("models"))
    return RememberedEmbedder(SentenceEmbedder(resolved.path, sha256=resolved.sha256))
