"""The reference names every series a server has, as it is."""

import re
from pathlib import Path
from types import SimpleNamespace

from prometheus_client.parser import text_string_to_metric_families

from serving.metrics import ServerMetrics
from serving.models.breaker import CircuitBreaker
from serving.models.guarded import GuardedChatModel
from serving.tracing.segments import SegmentWriter
from tests.serving.fakes import INVALID, CannedChatModel, make_engine
from tests.serving.running import run_app

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "http-api.mdx"
_ROW = re.compile(r"\| `(understudy_\w+)` \| (\w+) \| ([^|]+) \| [^|]+ \|")


async def test_the_reference_names_every_series_its_type_and_its_labels(tmp_path: Path) -> None:
    told = {
        name: (kind, frozenset(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels in _ROW.findall(PAGE.read_text())
    }
    student = GuardedChatModel(
        CannedChatModel("s", INVALID), breaker=CircuitBreaker(), timeout_seconds=9
    )
    engine = make_engine(student=student)  # type: ignore[arg-type]  (a breaker has series too)
    async with run_app(engine, tmp_path, shadow_ratio=1.0) as running:
        answer = (await running.ask()).json()
        feedback = {"trace_id": answer["trace_id"], "rating": "up"}
        await running.client.post("/feedback", json=feedback)
        text = await running.wait_for_metric('shadows_total{outcome="answered"} 1.0')
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.M))
    found = {name: kind for name, kind in kinds.items() if not name.endswith("_created")}
    assert {name: kind for name, (kind, _) in told.items()} == found
    labels = {
        sample.name.removesuffix("_bucket"): frozenset(sample.labels) - {"le"}
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    seen = labels.keys() & told.keys()
    assert {name: told[name][1] for name in seen} == {name: labels[name] for name in seen}
    assert len(told) - len(seen) == 1  # only a release with skills has series of skills


def test_questions_that_end_in_a_problem_are_timed_too(tmp_path: Path) -> None:
    live = SimpleNamespace(engine=make_engine(), failure=None, swap_count=0)
    metrics = ServerMetrics(SegmentWriter(tmp_path), live)  # type: ignore[arg-type]  (of its shape)
    metrics.count_problem("deadline-exceeded", seconds=31.0)
    text = metrics.render().decode()
    assert 'understudy_ask_seconds_bucket{le="30.0",served_by="none"} 0.0' in text
    assert 'understudy_ask_seconds_count{served_by="none"} 1.0' in text
    assert 'understudy_asks_total{outcome="deadline-exceeded"} 1.0' in text
