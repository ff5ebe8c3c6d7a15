"""Keys, scopes, quotas, escalation, feedback and metrics through the app itself."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving import schemas
from serving.access.admission import Admission
from serving.access.keys import KEYS_FILE, SCOPES, create_key, revoke_key
from serving.access.ring import RELOAD_SECONDS, KeyRing
from serving.app import create_app, open_admission
from serving.errors import InvalidInputError
from serving.pipeline.router import RouterPolicy
from serving.settings import ServerSettings
from serving.tracing.segments import SegmentWriter, read_segment
from tests.serving.fakes import INVALID, CannedChatModel, CannedRetriever, make_engine

QUESTION = "Where do I put environment variables?"
TRACE_ID = "01971b7c-5d2e-7c3a-9f1b-2a4c6e8d0f12"


@asynccontextmanager
async def _serve(
    home: Path, *, engine: Any = None, ready_host: str = "test", **options: Any
) -> AsyncIterator[httpx2.AsyncClient]:
    settings = ServerSettings(home=home, **options)
    app = create_app(
        engine=engine or make_engine(),
        settings=settings,
        writer=SegmentWriter(settings.segments_folder),
    )
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=app), base_url="http://test"
        ) as client,
    ):
        while (await client.get("/readyz", headers={"Host": ready_host})).status_code != 200:
            pass
        yield client


def _bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


async def _ask(client: httpx2.AsyncClient, key: str | None = None, **body: Any) -> Any:
    headers = _bearer(key) if key else {}
    return await client.post("/ask", json={"question": QUESTION} | body, headers=headers)


def _read(folder: Path) -> list[dict[str, Any]]:
    paths = sorted([*folder.glob("*.seg"), *folder.glob("*.seg.open")])
    return [record for path in paths for record in read_segment(path)]


def _read_traces(home: Path) -> list[dict[str, Any]]:
    return _read(home / "traces" / "segments")


def _problem(response: httpx2.Response) -> str:
    assert response.headers["content-type"] == "application/problem+json"
    return str(response.json()["type"]).rpartition(":")[2]


async def test_once_a_key_was_made_every_request_needs_one(tmp_path: Path) -> None:
    made = create_key(tmp_path / "keys", tenant="docs", scopes=["ask"])
    async with _serve(tmp_path) as client:
        assert (await client.get("/healthz")).status_code == 200
        anonymous = await _ask(client)
        assert (anonymous.status_code, _problem(anonymous)) == (401, "unauthenticated")
        assert anonymous.headers["www-authenticate"].startswith("Bearer")
        for wrong in ("us_000000000000_x", made.text + "x", "nonsense"):
            assert (await _ask(client, wrong)).status_code == 401
        answered = await _ask(client, made.text)
        assert answered.status_code == 200
        for path in ("/v1/release", "/metrics"):
            refused = await client.get(path, headers=_bearer(made.text))
            assert (refused.status_code, _problem(refused)) == (403, "not-allowed")
    (trace,) = _read_traces(tmp_path)
    assert trace["key_id"] == made.entry.key_id
    assert made.text not in str(trace)


async def test_an_open_server_still_checks_a_key_that_is_sent(tmp_path: Path) -> None:
    async with _serve(tmp_path) as client:
        assert (await _ask(client)).status_code == 200
        assert (await _ask(client, "us_000000000000_typo")).status_code == 401
        basic = await client.post(
            "/ask", json={"question": QUESTION}, headers={"Authorization": "Basic eDp5"}
        )
        assert basic.status_code == 401


async def test_a_revoked_key_is_refused_within_the_reload_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = [0.0]
    monkeypatch.setattr(KeyRing.__init__, "__kwdefaults__", {"clock": lambda: moment[0]})
    made = create_key(tmp_path / "keys", tenant="docs")
    async with _serve(tmp_path) as client:
        assert (await _ask(client, made.text)).status_code == 200
        revoke_key(tmp_path / "keys", made.entry.key_id)
        moment[0] += RELOAD_SECONDS
        refused = await _ask(client, made.text)
        assert (refused.status_code, refused.json()["found"]) == (401, "a revoked key")


async def test_a_key_past_its_rate_waits(tmp_path: Path) -> None:
    made = create_key(tmp_path / "keys", tenant="docs", requests_per_minute=2)
    other = create_key(tmp_path / "keys", tenant="docs")
    async with _serve(tmp_path) as client:
        codes = [(await _ask(client, made.text)).status_code for _ in range(3)]
        assert codes == [200, 200, 429]
        refused = await _ask(client, made.text)
        assert _problem(refused) == "over-quota"
        assert int(refused.headers["retry-after"]) >= 1
        assert (await _ask(client, other.text)).status_code == 200
    assert len(_read_traces(tmp_path)) == 3  # what was not admitted reached no pipeline


async def test_a_canarys_fallbacks_are_counted_for_the_key(tmp_path: Path) -> None:
    key = create_key(tmp_path / "keys", tenant="docs", teacher_calls_per_minute=1).text
    engine = make_engine(
        student=CannedChatModel("s", INVALID), router=RouterPolicy(canary_ratio=1.0)
    )
    async with _serve(tmp_path, engine=engine) as client:
        answers = [(await _ask(client, key)).json() for _ in range(2)]
    assert [a["refused"] for a in answers] == [False, True]


async def test_who_may_not_ask_is_told_before_the_body_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    monkeypatch.setattr(schemas, "normalise_question", looked.append)
    create_key(tmp_path / "keys", tenant="docs")
    async with _serve(tmp_path) as client:
        refused = [
            await _ask(client, question="x", surplus=1),
            await client.post("/feedback", json={"rating": "meh"}),
        ]
    assert [(r.status_code, _problem(r)) for r in refused] == [(401, "unauthenticated")] * 2
    assert not looked


def _find_authenticated(client: httpx2.AsyncClient) -> list[tuple[str, str]]:
    """Return the method and the path of every route that describes a 401, and of the reference."""
    app: Any = client._transport.app  # type: ignore[attr-defined]
    routes = {
        (method.upper(), path)
        for path, methods in app.openapi()["paths"].items()
        for method, told in methods.items()
        if "401" in told["responses"]
    }
    return sorted({*routes, ("GET", "/openapi.json")})


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b"{not json", "application/json"),
        (b"[" * 5000, "application/json"),
        (b"\xff\xfe", "application/json"),
        (b"", "application/json"),
        (b"[]", "application/json"),
        (b"question=x", "application/x-www-form-urlencoded"),
    ],
)
async def test_401_comes_before_whatever_is_wrong_with_the_body(
    tmp_path: Path, content: bytes, content_type: str
) -> None:
    made = create_key(tmp_path / "keys", tenant="docs", scopes=SCOPES)
    async with _serve(tmp_path) as client:
        routes = _find_authenticated(client)
        assert {("POST", "/ask"), ("POST", "/feedback"), ("GET", "/metrics")} < set(routes)
        for method, path in routes:
            for sent in ({}, _bearer("us_000000000000_wrong"), {"Authorization": "Basic eDp5"}):
                headers = {"content-type": content_type, **sent}
                refused = await client.request(method, path, content=content, headers=headers)
                assert (refused.status_code, _problem(refused)) == (401, "unauthenticated")
            headers = {"content-type": content_type, **_bearer(made.text)}
            known = await client.request(method, path, content=content, headers=headers)
            assert known.status_code == (422 if method == "POST" else 200)


async def test_quality_needs_its_scope_and_its_quota(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    plain = create_key(keys, tenant="docs").text
    granted = create_key(
        keys, tenant="docs", scopes=["ask", "ask:prefer_quality"], teacher_calls_per_minute=1
    ).text
    async with _serve(tmp_path) as client:
        refused = await _ask(client, plain, prefer_quality=True)
        assert (refused.status_code, _problem(refused)) == (403, "not-allowed")
        first = await _ask(client, granted, prefer_quality=True)
        assert (first.json()["served_by"], first.json()["route_reason"]) == (
            "teacher",
            "prefer_quality",
        )
        past = await _ask(client, granted, prefer_quality=True)
        assert (past.status_code, _problem(past)) == (429, "over-quota")
        assert (await _ask(client, granted)).json()["served_by"] == "student"


async def test_quality_past_the_servers_own_budget_is_refused_until_there_is_room(
    tmp_path: Path,
) -> None:
    key = create_key(tmp_path / "keys", tenant="docs", scopes=["ask", "ask:prefer_quality"]).text
    async with _serve(tmp_path, teacher_calls_per_day=1) as client:
        first = await _ask(client, key, prefer_quality=True)
        assert first.json()["served_by"] == "teacher"
        past = await _ask(client, key, prefer_quality=True)
        assert (past.status_code, _problem(past)) == (429, "over-quota")
        assert int(past.headers["retry-after"]) > 3600
        assert (await _ask(client, key)).json()["served_by"] == "student"


async def test_who_finds_no_place_has_spent_no_call_of_the_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = create_key(
        tmp_path / "keys",
        tenant="docs",
        scopes=["ask", "ask:prefer_quality"],
        teacher_calls_per_minute=2,
    ).text
    grant = Admission.grant_quality

    async def grant_slowly(self: Admission, *args: Any, **options: Any) -> None:
        await asyncio.sleep(0.05)  # others come in while a quota is looked up
        await grant(self, *args, **options)

    monkeypatch.setattr(Admission, "grant_quality", grant_slowly)
    async with _serve(tmp_path, max_concurrency=1) as client:
        both = await asyncio.gather(*(_ask(client, key, prefer_quality=True) for _ in range(2)))
        assert sorted(r.status_code for r in both) == [200, 503]
        assert (await _ask(client, key, prefer_quality=True)).status_code == 200
        past = await _ask(client, key, prefer_quality=True)
        assert (past.status_code, _problem(past)) == (429, "over-quota")
        assert (await _ask(client, key)).status_code == 200  # who was refused left its place


@pytest.mark.parametrize(
    ("scopes", "is_on", "served_by", "is_granted"),
    [
        (["ask"], False, "student", False),
        (["ask"], True, "student", False),
        (["ask", "ask:prefer_quality"], False, "student", False),
        (["ask", "ask:prefer_quality"], True, "teacher", True),
    ],
)
async def test_the_admin_prefix_is_at_most_a_request(
    tmp_path: Path, scopes: list[str], *, is_on: bool, served_by: str, is_granted: bool
) -> None:
    key = create_key(tmp_path / "keys", tenant="docs", scopes=scopes).text
    retriever = CannedRetriever()
    student, teacher = CannedChatModel("s"), CannedChatModel("t")
    engine = make_engine(retriever=retriever, student=student, teacher=teacher)
    async with _serve(tmp_path, engine=engine, env="prod", admin_prefix=is_on) as client:
        answer = (await _ask(client, key, question=f"[Adm\u0456n] {QUESTION}")).json()
    assert answer["served_by"] == served_by
    (trace,) = _read_traces(tmp_path)
    assert (trace["escalation_requested"], trace["escalation_granted"]) == (True, is_granted)
    assert (trace["trainable"], trace["trainable_reason"]) == (False, "escalated")
    assert trace["question"] == retriever.questions[-1] == QUESTION
    asked = student.requests[1:] + teacher.requests  # the first one is the warm-up
    assert "dm" not in asked[-1].messages[-1]["content"]


async def test_a_prefix_without_a_question_is_no_question(tmp_path: Path) -> None:
    async with _serve(tmp_path) as client:
        refused = await _ask(client, question="[admin] [ADMIN]")
    assert (refused.status_code, _problem(refused)) == (422, "invalid-request")


async def test_traffic_of_a_staging_key_is_never_production(tmp_path: Path) -> None:
    staging = create_key(tmp_path / "keys", tenant="docs", env="staging").text
    production = create_key(tmp_path / "keys", tenant="docs").text
    async with _serve(tmp_path, env="prod") as client:
        for key in (staging, production):
            await _ask(client, key)
    first, second = _read_traces(tmp_path)
    assert (first["env"], first["trainable"]) == ("staging", False)
    assert (second["env"], second["trainable"]) == ("prod", True)


async def test_a_server_others_can_reach_asks_for_keys(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="keys create"):
        open_admission(ServerSettings(home=tmp_path, host="0.0.0.0"))  # noqa: S104
    open_admission(ServerSettings(home=tmp_path, host="0.0.0.0", auth="open"))  # noqa: S104
    create_key(tmp_path / "keys", tenant="docs")
    open_admission(ServerSettings(home=tmp_path, host="0.0.0.0"))  # noqa: S104
    (tmp_path / "keys" / KEYS_FILE).write_text("{")
    with pytest.raises(InvalidInputError, match=KEYS_FILE):
        open_admission(ServerSettings(home=tmp_path))


async def test_feedback_is_stored_scrubbed_and_apart_from_traces(tmp_path: Path) -> None:
    async with _serve(tmp_path) as client:
        response = await client.post(
            "/feedback",
            json={"trace_id": TRACE_ID, "rating": "down", "comment": "Wrong. Mail jo@example.com"},
        )
        assert response.status_code == 201
    (record,) = _read(tmp_path / "traces" / "feedback")
    assert record["feedback_id"] == response.json()["feedback_id"]
    assert (record["trace_id"], record["rating"]) == (TRACE_ID, "down")
    assert record["comment"] == "Wrong. Mail [email]"
    assert not _read_traces(tmp_path)


@pytest.mark.parametrize(
    "body",
    [
        {"trace_id": "x", "rating": "up"},
        {"trace_id": TRACE_ID, "rating": "meh"},
        {"trace_id": TRACE_ID},
        {"trace_id": TRACE_ID, "rating": "up", "comment": "c" * 2001},
        {"trace_id": TRACE_ID, "rating": "up", "train_on_this": True},
    ],
)
async def test_wrong_feedback_is_explained(tmp_path: Path, body: dict[str, Any]) -> None:
    async with _serve(tmp_path) as client:
        response = await client.post("/feedback", json=body)
    assert (response.status_code, _problem(response)) == (422, "invalid-request")
    assert "rating (up or down)" in response.json()["expected"]
    assert not (tmp_path / "traces" / "feedback").exists()


async def test_feedback_that_no_disk_takes_is_not_called_stored(tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "feedback").write_text("a file where the folder should be")
    async with _serve(tmp_path) as client:
        response = await client.post("/feedback", json={"trace_id": TRACE_ID, "rating": "up"})
    assert (response.status_code, _problem(response)) == (503, "not-stored")


async def test_metrics_count_what_happened(tmp_path: Path) -> None:
    engine = make_engine(student=CannedChatModel("s", INVALID))
    async with _serve(tmp_path, engine=engine) as client:
        for _ in range(3):
            await _ask(client)
        await client.post("/feedback", json={"trace_id": TRACE_ID, "rating": "up"})
        text = (await client.get("/metrics")).text
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["understudy_asks_total", "answered"] == 3
    assert samples["understudy_answers_total", "default", "teacher"] == 3
    assert sum(v for k, v in samples.items() if k[0] == "understudy_fallbacks_total") == 3
    assert samples["understudy_ask_seconds_count", "teacher"] == 3
    assert samples["understudy_traces_total", "stored"] == 3
    assert samples["understudy_feedback_total", "up"] == 1
    assert samples[("understudy_ready",)] == 1
    assert QUESTION not in text


@pytest.mark.parametrize(
    ("host", "is_keyed", "status"),
    [
        ("127.0.0.1:8321", False, 200),
        ("localhost", False, 200),
        ("[::1]:8321", False, 200),
        ("evil.example", False, 403),
        ("127.0.0.1.evil.example", False, 403),
        ("", False, 403),
        ("docs.example", True, 401),  # a proxy's name; without a key nothing is read
    ],
)
async def test_an_open_server_answers_to_names_of_its_own_machine_alone(
    tmp_path: Path, host: str, *, is_keyed: bool, status: int
) -> None:
    """A page elsewhere can make its own name mean this machine, and read what it is answered."""
    if is_keyed:
        create_key(tmp_path / "keys", tenant="docs")
    async with _serve(tmp_path, checks_host=True, ready_host="127.0.0.1") as client:
        reply = await client.get("/v1/release", headers={"Host": host})
    assert reply.status_code == status
