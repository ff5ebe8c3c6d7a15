"""Decisions, admission, escalations and deletions, over traces that the server itself wrote."""

import json
import shlex
import shutil
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import dagster as dg
import polars as pl
import pytest
from typer.testing import CliRunner

from assets import tables
from assets.traces.admission import admit_decisions, select_harvest, tabulate_admissions
from assets.traces.checks import human_loop_is_human, only_curated_production_is_admitted
from assets.traces.compaction import find_miscounted
from assets.traces.curating import find_candidates
from assets.traces.deciding import Reviewer, decide_trace, find_trace, open_decisions
from assets.traces.escalating import audit_loop, find_escalations
from assets.traces.hours import find_folder, list_hours, scan_hours
from assets.traces.requesting import (
    DeletionRequest,
    find_remains,
    find_unfinished,
    open_deletions,
    request_deletion,
)
from orchestration import cli
from orchestration.curate_cli import compact
from orchestration.forgetting import hash_training_set
from resources.traces import SealedSegments
from serving.errors import InvalidInputError
from serving.home import Home
from serving.models.protocols import ChatRequest
from serving.pipeline.router import RouterPolicy
from tests.assets.traces.served import (
    START,
    answer_as_teacher,
    make_keys,
    plan_days,
    serve_plan,
)
from tests.serving.fakes import TEACHER_PRICE, CannedChatModel

ADA = Reviewer(name="ada", kind="human")
BOT = Reviewer(name="triage-bot", kind="automation")
LATER = START + timedelta(days=30)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Three days of twelve customers, and a staging key whose every question is a canary."""
    home = Home(tmp_path_factory.mktemp("curation") / "home")
    keys = make_keys(home.root, 12)
    staging = make_keys(home.root, 1, env="staging")
    serve_plan(home.root, plan_days(3, 150), keys=keys, feedback=["canary-of-a-thumb"])
    serve_plan(home.root, plan_days(0.2, 50, seed=9), keys=staging)
    compact(home)
    return home


@pytest.fixture
def home(written, tmp_path):
    shutil.copytree(written.root, tmp_path / "home")
    return Home(tmp_path / "home")


def records(home: Home) -> pl.DataFrame:
    return scan_hours(list_hours(find_folder(home))).collect().sort("trace_id")


def decide(home: Home, trace: dict, verdict="accepted", reviewer=ADA, seconds=10.0, **changes):
    at = changes.pop("decided_at", LATER)
    line = decide_trace(
        trace, verdict=verdict,
        reason_code="recurring" if verdict == "accepted" else "unclear",
        reviewer=reviewer, shown_at=at - timedelta(seconds=seconds), decided_at=at,
        escalation_id=changes.pop("escalation_id", None),
    ) | changes  # fmt: skip
    open_decisions(home).append(line)
    return line


def admit(home: Home, handwritten=5000) -> dict[str, str]:
    admitted = admit_decisions(
        open_decisions(home).read(), open_deletions(home).read(), handwritten_count=handwritten
    )
    return dict(admitted.select("trace_id", "reason").iter_rows())


def forget(home: Home, kind: str, value: str, **changes) -> dict:
    request = DeletionRequest(
        kind=kind, value=value, reason="asked", requested_by="ada", requested_at=LATER, **changes
    )
    return request_deletion(home, request, hash_training_set=hash_training_set)


def accept_one_of_each_key(home: Home) -> list[str]:
    eligible = records(home).filter(
        (pl.col("env") == "prod") & pl.col("trainable") & ~pl.col("is_injection")
        & ~pl.col("escalation_requested")
    ).unique("key_id", keep="first", maintain_order=True)  # fmt: skip
    for row in eligible.to_dicts():
        decide(home, row)
    return eligible["trace_id"].to_list()


def test_candidates_are_eligible_hardest_first_and_asked_once(home):
    rows = records(home)
    found = find_candidates(rows.lazy(), open_decisions(home).read())
    chosen = rows.filter(pl.col("trace_id").is_in(found["trace_id"]))
    assert found.height > 10
    assert found["question"].is_unique().all()
    assert set(chosen["env"]) == {"prod"}
    assert not chosen["is_injection"].any()
    assert not chosen["escalation_requested"].any()
    assert found["why"][0] == "fallback"
    first = find_trace(find_folder(home), found["trace_id"][0])
    decide(home, first, verdict="rejected")
    again = find_candidates(rows.lazy(), open_decisions(home).read())
    assert found["trace_id"][0] not in again["trace_id"].to_list()


def test_only_what_may_be_admitted_or_is_refused_settles_a_question_by_the_last_word(home):
    """Two traces ask the same; a decision about the first is or is not one about the question."""
    rows = records(home)
    first, second = (
        row | {"question": "Asked twice?", "question_hash": "twice"}
        for row in rows.filter(
            pl.col("trace_id").is_in(find_candidates(
                rows.lazy(), open_decisions(home).read())["trace_id"].to_list())
        ).head(2).to_dicts()
    )  # fmt: skip
    asked = pl.DataFrame([second], schema=rows.schema).lazy()

    def is_open() -> bool:
        return not find_candidates(asked, open_decisions(home).read()).is_empty()

    for unfit in ({"env": "staging"}, {"trainable": False}, {"escalation_requested": True}):
        decide(home, first | unfit, reviewer=BOT, trace_id=f"unfit-{[*unfit]}")
        assert is_open()
    decide(home, first)
    assert not is_open()
    later = {"decided_at": LATER + timedelta(hours=1), "verdict": "rejected"}
    decide(home, first, **later, reason_code="wrong_answer")
    assert is_open()  # the correction is about the answer alone
    decide(home, first, decided_at=LATER + timedelta(hours=2), verdict="rejected")
    assert not is_open()


def test_accepted_questions_of_enough_keys_are_admitted_and_a_new_trace_changes_nothing(home):
    ids = accept_one_of_each_key(home)
    assert len(ids) >= 12
    assert admit(home) == dict.fromkeys(ids, "")
    before = open_decisions(home).fingerprint()
    serve_plan(home.root, plan_days(0.1, 50, seed=4), keys=make_keys(home.root, 1))
    compact(home)
    assert admit(home) == dict.fromkeys(ids, "")
    assert open_decisions(home).fingerprint() == before


def test_each_term_of_admission_refuses_its_own_row(home):
    rows = records(home)
    accept_one_of_each_key(home)
    staging = rows.filter(pl.col("env") == "staging").row(0, named=True)
    injected = rows.filter(pl.col("is_injection") & (pl.col("env") == "prod")).row(0, named=True)
    forced = rows.filter("escalation_requested").row(0, named=True)
    sound = rows.filter(
        pl.col("trainable") & ~pl.col("is_injection") & (pl.col("selection_mode") == "rule")
    ).tail(4).to_dicts()  # fmt: skip
    decide(home, staging)
    decide(home, injected)
    decide(home, forced)
    decide(home, sound[0], verdict="rejected")
    decide(home, sound[1], reviewer=BOT)
    decide(home, sound[3], escalation_id="x", reviewer_kind="automation")
    reasons = admit(home)
    assert reasons[staging["trace_id"]] == "not_production"
    assert reasons[injected["trace_id"]] == "injection"
    assert reasons[forced["trace_id"]] == "not_trainable"
    assert reasons[sound[0]["trace_id"]] == "not_accepted"
    assert reasons[sound[1]["trace_id"]] == ""
    assert reasons[sound[3]["trace_id"]] == "not_human"


def test_a_later_decision_takes_an_earlier_one_back(home):
    ids = accept_one_of_each_key(home)
    trace = find_trace(find_folder(home), ids[0])
    decide(home, trace, verdict="rejected", decided_at=LATER + timedelta(days=1))
    admitted = admit_decisions(
        open_decisions(home).read(), open_deletions(home).read(), handwritten_count=5000
    ).filter(pl.col("trace_id") == ids[0])
    assert admitted["reason"].to_list() == ["superseded", "not_accepted"]


def test_no_key_fills_the_seeds_and_few_keys_teach_nothing(home):
    rows = records(home).filter(
        (pl.col("env") == "prod") & pl.col("trainable") & ~pl.col("is_injection")
    )
    one = rows.filter(pl.col("key_id") == rows["key_id"][0]).to_dicts()
    assert len(one) > 5
    for row in one:
        decide(home, row)
    assert set(admit(home).values()) == {"too_few_keys", "key_limit"} or set(
        admit(home).values()
    ) == {"too_few_keys"}
    accept_one_of_each_key(home)
    reasons = list(admit(home, handwritten=200).values())
    mine = [r for t, r in admit(home, handwritten=200).items() if t in {x["trace_id"] for x in one}]
    assert mine.count("") == int(0.02 * (200 + len(reasons)))
    assert mine.count("key_limit") == len(one) - mine.count("")


def test_the_check_reads_stored_traces_and_counts_keys(home):
    accept_one_of_each_key(home)
    table = tabulate_admissions(
        admit_decisions(
            open_decisions(home).read(), open_deletions(home).read(), handwritten_count=5000
        )
    )

    def check(admissions: pl.DataFrame, seeds: int = 5000) -> dg.AssetCheckResult:
        counted = SimpleNamespace(read=lambda: range(seeds))
        return only_curated_production_is_admitted(admissions, home, counted)

    assert check(table).passed
    assert check(table.clear()).passed
    strange = records(home).filter(pl.col("env") == "staging")["trace_id"][0]
    slipped = table.with_columns(trace_id=pl.lit(strange))
    leaked = check(slipped)
    assert not leaked.passed
    assert leaked.metadata["leaked_traces"].value == [strange]
    few = check(table.head(9))
    assert (few.passed, few.metadata["key_count"].value) == (False, 9)
    greedy = pl.concat([table, *[table.head(1)] * 20])
    assert not check(greedy).passed
    twice = pl.concat([table, table.head(1)])
    assert [check(twice, seeds).passed for seeds in (5000, 40)] == [True, False]
    assert check(twice, 40).metadata["maximum_rows_per_key"].value == 1


def test_canaries_of_staging_and_of_feedback_reach_no_training_row(home):
    accept_one_of_each_key(home)
    for row in records(home).filter(pl.col("env") == "staging").to_dicts():
        decide(home, row)
    admitted = admit_decisions(
        open_decisions(home).read(), open_deletions(home).read(), handwritten_count=5000
    )
    harvest = select_harvest(admitted)
    assert harvest.schema == tables.HARVESTED_QUESTIONS
    assert harvest.height >= 12
    assert set(harvest["env"]) == {"prod"}
    decided = set(open_decisions(home).read()["trace_id"])
    assert set(harvest["source_trace_id"]) <= decided
    assert b"canary-of-a-thumb" in b"".join(
        path.read_bytes() for path in home.traces.with_name("feedback").glob("*.seg")
    )
    assert not any("canary" in text for text in harvest["text"])
    assert not any(b"canary-of-a-thumb" in path.read_bytes()
                   for path in find_folder(home).rglob("*.parquet"))  # fmt: skip


def test_a_decision_about_an_unknown_trace_or_in_other_words_is_refused(home):
    with pytest.raises(InvalidInputError, match="looking up the trace 'nobody'") as caught:
        find_trace(find_folder(home), "nobody")
    assert "understudy curate list" in caught.value.next_step
    trace = records(home).row(0, named=True)
    for reviewer, verdict, reason in (
        (ADA, "maybe", "recurring"),
        (ADA, "accepted", "unclear"),
        (Reviewer(name=" ", kind="human"), "accepted", "recurring"),
    ):
        with pytest.raises(InvalidInputError):
            decide_trace(
                trace, verdict=verdict, reason_code=reason, reviewer=reviewer,
                shown_at=None, decided_at=LATER,
            )  # fmt: skip


def test_a_journal_survives_a_torn_line_and_names_a_bad_one(home):
    rows = records(home).head(3).to_dicts()
    journal = open_decisions(home)
    decide(home, rows[0])
    with journal.path.open("ab") as stream:
        stream.write(b'{"decision_id": "torn')
    assert journal.read().height == 1
    journal.rewrite(lambda line: line | {"reviewer": "bob"})
    assert journal.read()["reviewer"].to_list() == ["bob"]
    decide(home, rows[1])
    assert journal.read()["trace_id"].to_list() == [rows[0]["trace_id"], rows[1]["trace_id"]]
    journal.path.write_bytes(b"nonsense\n" + journal.path.read_bytes())
    with pytest.raises(InvalidInputError, match="line 1 of"):
        journal.read()


def test_the_queue_holds_contested_refusals_and_double_failures_of_production(home):
    rows = records(home)
    queue = find_escalations(rows.lazy(), open_decisions(home).read())
    assert set(queue["reason"]) == {"contested_refusal", "failed_twice"}
    joined = queue.join(rows, on="trace_id")
    assert set(joined["env"]) == {"prod"}
    failed = joined.filter(pl.col("reason") == "failed_twice")
    assert (failed["attempts"].list.len() >= 2).all()
    assert failed["refused"].all()
    contested = joined.filter(pl.col("reason") == "contested_refusal")
    for row in contested.to_dicts():
        later = rows.filter(
            (pl.col("conversation_id") == row["conversation_id"])
            & (pl.col("asked_at") > row["asked_at"])
        )
        assert later.height


def test_automation_cannot_close_what_only_people_may_and_hasty_people_are_noticed(home):
    rows = records(home)
    queue = find_escalations(rows.lazy(), open_decisions(home).read())
    by_id = {row["trace_id"]: row for row in rows.to_dicts()}
    first, second, *_ = queue.unique("trace_id", keep="first", maintain_order=True).to_dicts()
    with pytest.raises(InvalidInputError, match="contract 1"):
        decide(home, by_id[first["trace_id"]], reviewer=BOT, escalation_id=first["escalation_id"])

    def check():
        decisions = open_decisions(home).read()
        found = find_escalations(rows.lazy(), decisions)
        return human_loop_is_human(found, decisions), audit_loop(found, decisions)

    assert check()[0].passed
    decide(home, by_id[first["trace_id"]], escalation_id=first["escalation_id"])
    result, loop = check()
    assert (result.passed, loop.closed_count) == (True, 1)
    decide(home, by_id[second["trace_id"]], escalation_id=second["escalation_id"], seconds=1)
    result, loop = check()
    assert not result.passed
    assert result.severity.value == "WARN"
    assert loop.hasty == (second["escalation_id"],)
    decide(home, by_id[second["trace_id"]], escalation_id=second["escalation_id"],
           reviewer_kind="automation", decided_at=LATER + timedelta(hours=1))  # fmt: skip
    result, loop = check()
    assert result.severity.value == "ERROR"
    assert loop.by_automation == (second["escalation_id"],)


def test_automation_decides_nothing_anew_that_was_a_persons(home, monkeypatch):
    """Neither an escalation that a person closed nor a decision of a person's own."""
    monkeypatch.setenv("UNDERSTUDY_HOME", str(home.root))
    rows = records(home)
    queue = find_escalations(rows.lazy(), open_decisions(home).read()).to_dicts()
    by_id = {row["trace_id"]: row for row in rows.to_dicts()}
    escalated = next(e for e in queue if by_id[e["trace_id"]]["trainable"])
    own = find_candidates(rows.lazy(), open_decisions(home).read())["trace_id"][-1]
    ids = [escalated["trace_id"], own]
    decide(home, by_id[ids[0]], verdict="rejected", escalation_id=escalated["escalation_id"])
    decide(home, by_id[ids[1]], verdict="rejected")
    for trace_id in ids:
        refused = CliRunner().invoke(cli.app, [
            "curate", "decide", trace_id, "--reviewer", "bot", "--automation",
            "--decision", "accepted", "--reason-code", "recurring",
        ])  # fmt: skip
        assert (refused.exit_code, "contract 1" in refused.output) == (2, True)
        decide(home, by_id[trace_id], reviewer=BOT, decided_at=LATER + timedelta(hours=1))
    admitted = admit_decisions(
        open_decisions(home).read(), open_deletions(home).read(), handwritten_count=5000
    )
    assert dict(admitted.filter(reviewer_kind="automation").select("trace_id", "reason").rows()) \
        == dict.fromkeys(ids, "not_human")  # fmt: skip
    decisions = open_decisions(home).read()
    loop = audit_loop(find_escalations(rows.lazy(), decisions), decisions)
    assert loop.by_automation == (escalated["escalation_id"],)


def test_what_automation_accepted_before_it_was_contested_is_told(home):
    rows = records(home)
    queue = find_escalations(rows.lazy(), open_decisions(home).read())
    row = queue.filter(reason="contested_refusal").row(0, named=True)
    trace = rows.filter(trace_id=row["trace_id"]).row(0, named=True)
    decide(home, trace, reviewer=BOT)
    decisions = open_decisions(home).read()
    told = human_loop_is_human(find_escalations(rows.lazy(), decisions), decisions)
    assert (told.passed, told.severity.value) == (False, "WARN")
    assert told.metadata["unseen"].value == [row["escalation_id"]]
    decide(home, trace, escalation_id=row["escalation_id"], decided_at=LATER + timedelta(hours=1))
    decisions = open_decisions(home).read()
    assert human_loop_is_human(find_escalations(rows.lazy(), decisions), decisions).passed


def refuse_a_change(request: ChatRequest) -> str:
    """Answer as the teacher, who has no source about the change that the student is unsure of."""
    is_unsure = "change 5" in str(request.messages[-1]["content"])
    return "REFUSE" if is_unsure else answer_as_teacher(request)


def test_topics_of_high_stakes_wait_for_a_person_and_a_doubted_valid_answer_has_not_failed(
    tmp_path,
):
    """The router marks what it sends to the teacher for its words; confidence doubts the rest."""
    home = Home(tmp_path / "home")
    teacher = CannedChatModel("extractive-v1", refuse_a_change, TEACHER_PRICE)
    serve_plan(
        home.root, plan_days(0.3, 200), keys=make_keys(home.root, 2), has_doubts=True,
        teacher=teacher, router=RouterPolicy(high_stakes_terms=("environment variable",)),
    )  # fmt: skip
    compact(home)
    rows = records(home)
    stakes = rows.filter(route_reason="high_stakes")
    assert not stakes.is_empty()
    queue = find_escalations(rows.lazy(), open_decisions(home).read())
    assert set(queue.filter(reason="high_stakes")["trace_id"]) == set(stakes["trace_id"])
    verdicts = pl.col("attempts").list.eval(pl.element().struct.field("verdict"))
    doubted = rows.filter(
        pl.col("attempts").list.len() == 2, verdicts.list.first() == "valid", "refused"
    )
    assert not doubted.is_empty()
    failed = queue.filter(reason="failed_twice").join(rows, on="trace_id")
    assert not failed["trace_id"].is_in(doubted["trace_id"].to_list()).any()
    assert (failed.select(verdicts.list.first().ne("valid").alias("v"))["v"]).all()
    assert not failed.is_empty()


@pytest.mark.parametrize("kind", ["trace", "conversation", "key"])
def test_what_is_forgotten_is_in_no_segment_hour_decision_or_seed(home, kind):
    ids = accept_one_of_each_key(home)
    trace = find_trace(find_folder(home), ids[0])
    column = {"trace": "trace_id", "conversation": "conversation_id", "key": "key_id"}[kind]
    gone = records(home).filter(pl.col(column) == trace[column])
    stored = records(home).height
    identity = SealedSegments(home.traces).fingerprint()
    forget(home, kind, trace[column])
    assert find_remains(home) == {"hours": gone.height}
    assert compact(home).deleted_count == gone.height
    assert find_remains(home) == {}
    assert records(home).height == stored - gone.height
    everything = b"".join(
        path.read_bytes() for path in find_folder(home).rglob("*.seg")
    ) + open_decisions(home).path.read_bytes()  # fmt: skip
    for row in gone.to_dicts():
        if row["question_hash"] not in records(home)["question_hash"].to_list():
            assert row["question_hash"].encode() not in everything
    assert admit(home)[ids[0]] == "deleted"
    assert find_miscounted(find_folder(home), SealedSegments(home.traces).list_files()) == []
    assert SealedSegments(home.traces).fingerprint() == identity


@pytest.fixture
def shared(home) -> list[dict]:
    """Two customers that chose the same id for a conversation; the first was refused something."""
    plan = [replace(ask, conversation_id="chat-1", key_number=number, question=question,
                    at_seconds=60.0 * number)
            for number, (ask, question) in enumerate(zip(plan_days(0.1, 50), (
                "Who won the football match?", "How do I deploy release 1 of my project?",
            ), strict=False))]  # fmt: skip
    ids = serve_plan(home.root, plan, keys=make_keys(home.root, 2))
    compact(home)
    return [find_trace(find_folder(home), trace_id) for trace_id in ids]


def test_a_conversation_is_forgotten_of_the_key_that_had_it(home, shared, monkeypatch):
    mine, theirs = shared
    assert mine["key_id"] != theirs["key_id"]
    with pytest.raises(InvalidInputError, match=r"'chat-1'.*under the keys") as caught:
        forget(home, "conversation", "chat-1")
    assert all(repr(trace["key_id"]) in caught.value.found for trace in shared)
    with pytest.raises(InvalidInputError, match="'nobody' named"):
        forget(home, "conversation", "chat-1", key_id="nobody")
    monkeypatch.setenv("UNDERSTUDY_HOME", str(home.root))
    arguments = ["curate", "forget", "conversation", "chat-1", "--reviewer", "ada"]
    refused = CliRunner().invoke(cli.app, arguments)
    assert (refused.exit_code, "--key" in refused.output) == (2, True)
    done = CliRunner().invoke(cli.app, [*arguments, "--key", mine["key_id"]])
    assert done.exit_code == 0, done.output
    left = records(home).filter(pl.col("conversation_id") == "chat-1")
    assert left["trace_id"].to_list() == [theirs["trace_id"]]
    with pytest.raises(InvalidInputError, match="under the keys"):  # it was both's, once
        forget(home, "conversation", "chat-1")


def test_a_conversation_without_a_key_is_its_own(home):
    plan = [replace(ask, conversation_id="chat-2") for ask in plan_days(0.1, 20)]
    ids = serve_plan(home.root, plan)
    compact(home)
    row = forget(home, "conversation", "chat-2")
    assert (row["key_id"], row["trace_ids"]) == (None, sorted(ids))
    assert forget(home, "conversation", "chat-2", key_id="")["trace_ids"] == sorted(ids)
    with pytest.raises(InvalidInputError, match="under the keys none"):
        forget(home, "conversation", "chat-3")


def test_another_customer_contests_no_refusal(home, shared):
    queue = find_escalations(records(home).lazy(), open_decisions(home).read())
    assert shared[0]["refused"]
    assert shared[0]["trace_id"] not in queue["trace_id"].to_list()


def test_a_segment_that_comes_after_its_deletion_loses_the_record_too(home):
    late = sorted(home.traces.glob("*.seg"))[0]
    trace_ids = records(home).filter(pl.col("segment") == late.name)["trace_id"].to_list()
    shutil.copy(late, home.traces / "9-20270101T000000000000-000001.seg")
    forget(home, "trace", trace_ids[0])
    assert compact(home).deleted_count == 2
    assert trace_ids[0] not in records(home)["trace_id"].to_list()


def test_forgetting_what_never_was_is_refused(home):
    with pytest.raises(InvalidInputError, match="forgetting the trace"):
        forget(home, "trace", "x")
    with pytest.raises(InvalidInputError, match="what to forget"):
        forget(home, "planet", "x")


@pytest.mark.parametrize("kind", ["trace", "key"])
def test_a_key_beside_what_is_no_conversation_is_refused(tmp_path, kind):
    with pytest.raises(InvalidInputError, match="leave --key out"):
        forget(Home(tmp_path), kind, "x", key_id="k")


def test_an_interrupted_request_is_told_as_a_command_that_is_safe_to_paste(tmp_path, monkeypatch):
    home = Home(tmp_path / "home")
    value = "--key=x'; touch pwned #"  # clients choose it

    def refuse(_descendants: object) -> int:
        raise OSError(28, "No space left on device")

    request = DeletionRequest(kind="conversation", value=value, key_id="", reason="it's due",
        requested_by="ada l", requested_at=LATER)  # fmt: skip
    with pytest.raises(OSError, match="space"):
        request_deletion(home, request, hash_training_set=hash_training_set, stores=[refuse])
    (command,) = find_unfinished(home)
    monkeypatch.setenv("UNDERSTUDY_HOME", str(home.root))
    done = CliRunner().invoke(cli.app, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    assert find_unfinished(home) == []
    told = open_deletions(home).read().select("value", "key_id", "reason", "requested_by")
    assert set(told.iter_rows()) == {(value, None, "it's due", "ada l")}


def test_a_tombstone_that_lacks_a_later_column_stops_nobody(home):
    trace_id = records(home)["trace_id"][0]
    forget(home, "trace", trace_id)
    path = open_deletions(home).path
    row = json.loads(path.read_bytes())
    early = {n: v for n, v in row.items() if n not in {"key_id", "doubtful_adapters", "texts"}}
    path.write_text(json.dumps(early) + "\n")
    assert open_deletions(home).read()["doubtful_adapters"].to_list() == [None]
    assert compact(home).deleted_count == 1
    assert forget(home, "trace", trace_id)["trace_ids"] == [trace_id]
    del early["trace_ids"]
    path.write_text(json.dumps(early) + "\n")
    with pytest.raises(InvalidInputError, match="trace_ids"):
        open_deletions(home).read()


def test_the_command_line_lists_shows_decides_and_forgets(home, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_HOME", str(home.root))

    def invoke(*arguments, **options):
        return CliRunner().invoke(cli.app, ["curate", *arguments], **options)

    listed = json.loads(invoke("list", "--json", "--limit", "3").stdout)
    assert len(listed) == 3
    trace_id = listed[0]["trace_id"]
    assert json.loads(invoke("show", trace_id, "--json").stdout)["trace_id"] == trace_id
    named = ("--decision", "accepted", "--reason-code", "recurring")
    nobody = invoke("decide", trace_id, "--reviewer", "ada", *named, input="")
    assert (nobody.exit_code, "a person in a terminal" in nobody.output) == (2, True)
    assert invoke("decide", trace_id, "--reviewer", "ada", *named, input="n\n").exit_code == 1
    assert open_decisions(home).read().is_empty()
    words = "perhaps\naccepted\nunclear\nrecurring\ny\n"  # a word of no rubric is asked for again
    done = invoke("decide", trace_id, "--reviewer", "ada", input=words)
    assert done.exit_code == 0, done.output
    (row,) = open_decisions(home).read().to_dicts()
    assert (row["trace_id"], row["reviewer_kind"], row["decision"]) == (
        trace_id, "human", "accepted",
    )  # fmt: skip
    assert row["shown_at"] <= row["decided_at"]
    assert invoke("decide", "nobody", "--reviewer", "ada").exit_code == 2
    assert "curate list --escalations" in " ".join(invoke("list").output.split())
    waiting = json.loads(invoke("list", "--escalations", "--json", "--limit", "999").stdout)
    assert {entry["reason"] for entry in waiting} == {"contested_refusal", "failed_twice"}
    refused = invoke("decide", waiting[0]["trace_id"], "--reviewer", "bot", "--automation",
                     "--decision", "rejected", "--reason-code", "unclear")  # fmt: skip
    assert refused.exit_code == 2
    plain = invoke("list", "--limit", "2").output.splitlines()
    assert [line[:2] == "  " for line in plain[:4]] == [False, True, False, True]
    closed = home.traces.with_name("feedback") / "0-closed-1.seg"
    closed.mkdir()  # opens as little as a file of somebody else
    told = invoke("forget", "trace", trace_id, "--reviewer", "ada")
    assert (told.exit_code, closed.name in told.output) == (2, True)
    assert invoke("show", trace_id).exit_code == 2
    closed.rmdir()
    assert invoke("forget", "trace", trace_id, "--reviewer", "ada").exit_code == 0
