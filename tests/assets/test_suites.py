"""What seeds, golden cases and labelled examples promise: each broken row breaks its own promise.

Sound rows are the committed ones (seeds, golden cases) or written by the production prompt.
"""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from assets import tables
from assets.check_results import report_outcome
from assets.eval_set.assets import golden_cases
from assets.eval_set.expectations import GoldenPlan, evaluate_golden
from assets.expectations import SuiteOutcome
from assets.labels.expectations import evaluate_examples
from assets.seeds.assets import tabulate_handwritten
from assets.seeds.expectations import evaluate_seeds
from assets.seeds.harvesting import list_private_seeds
from orchestration.config import load_config
from resources.input_files import GoldenFile, SeedFile
from serving.models.protocols import Hit
from serving.pipeline.prompt import PromptFormat

NOW = datetime.now(UTC)
CONFIG = load_config({})


def break_rows(frame: pl.DataFrame, id_column: str, faults: dict[str, dict]) -> pl.DataFrame:
    """Return the frame with one sound row replaced per fault; the fault's name becomes its id."""
    rows = frame.to_dicts()
    for row, (name, changes) in zip(rows, faults.items(), strict=False):
        row |= {id_column: name} | changes
    return pl.DataFrame(rows, schema=frame.schema)


def broken(outcome: SuiteOutcome) -> dict[str, list[str]]:
    return {promise.statement: [row.id for row in promise.rows] for promise in outcome.broken}


def levels(outcome: SuiteOutcome) -> dict[str, bool]:
    return {promise.statement: promise.is_critical for promise in outcome.broken}


@pytest.fixture(scope="module")
def seeds() -> pl.DataFrame:
    return tabulate_handwritten(SeedFile(CONFIG.seeds.path).read(), added_at=NOW)


@pytest.fixture(scope="module")
def cases() -> pl.DataFrame:
    return golden_cases(golden=GoldenFile(CONFIG.eval.golden)).value


def make_example(number: int, completion: str = "The kiln reaches 1300 degrees. [1]") -> dict:
    hits = [
        Hit(
            chunk_id=f"docs:kiln/{n}", content_hash="aaaa", text=text, title="Kiln", url="/kiln/",
            heading_path=("Kiln", "Heat"), score=0.8,
        )
        for n, text in enumerate(["The kiln reaches 1300 degrees.", "Shelves are brushed."], 1)
    ]  # fmt: skip
    prompt, question = PromptFormat(), f"How hot is kiln {number}?"
    return {
        "example_id": f"e{number}", "question_id": f"q{number}", "seed_id": f"s{number}",
        "question": question,
        "messages": [dict(m) for m in prompt.write_request(question, hits).messages],
        "completion": completion, "refused": completion == "REFUSE",
        "split": ("train", "train", "train", "validation")[number % 4], "weight": 1.0,
        "teacher_id": "extractive-v1", "teacher_license": "Apache-2.0",
        "prompt_version": prompt.version, "index_fingerprint": "feed", "content_key": f"k{number}",
    }  # fmt: skip


@pytest.fixture(scope="module")
def examples() -> pl.DataFrame:
    rows = [make_example(n, "REFUSE" if n % 5 == 4 else make_example(n)["completion"])
            for n in range(60)]  # fmt: skip
    return tabulate_examples(rows)


def tabulate_examples(rows: list[dict]) -> pl.DataFrame:
    """Columns that the suite does not read stay null, whichever there are."""
    known = [{name: row.get(name) for name in tables.LABELLED_EXAMPLES} for row in rows]
    return pl.DataFrame(known, schema=tables.LABELLED_EXAMPLES)


def guard(examples: pl.DataFrame, **texts: str) -> pl.DataFrame:
    """Return the examples' questions as the guard kept them; `texts`: by example, other ones."""
    names = examples["example_id"].to_list()
    return pl.DataFrame(
        {
            "question_id": examples["question_id"],
            "text": [texts.get(n, q) for n, q in zip(names, examples["question"], strict=True)],
            "verdict": ["kept"] * len(names),
        },
        schema={
            name: tables.GUARDED_QUESTIONS[name] for name in ("question_id", "text", "verdict")
        },
    )


def test_the_committed_seeds_and_cases_keep_every_promise(seeds, cases):
    assert evaluate_seeds(seeds, now=NOW).broken == ()
    plan = GoldenPlan(cases_by_bucket=CONFIG.eval.cases_by_bucket)
    outcome = evaluate_golden(cases, plan=plan)
    assert outcome.broken == ()
    assert "the set has 90 answerable cases, as eval.cases_by_bucket says" in outcome.statements


def test_each_broken_seed_breaks_its_own_promise(seeds):
    faults = {
        "no-text": {"text": None},
        "too-long": {"text": "why? " * 1000},
        "long": {"text": "why? " * 300},
        "no-word": {"text": "?!"},
        "bought": {"source": "bought"},
        "no-trace": {"source": "harvested"},
        "has-trace": {"source_trace_id": "0197"},
        "harvested": {"source": "harvested", "source_trace_id": "0197"},  # sound
        "future": {"added_at": NOW + timedelta(days=1)},
        "undated": {"added_at": datetime(1970, 1, 1, tzinfo=UTC)},
    }
    outcome = evaluate_seeds(break_rows(seeds, "question_id", faults), now=NOW)
    assert broken(outcome) == {
        "every row has text": ["no-text"],
        "every seed has 1 to 4000 characters, like /ask": ["too-long"],
        "every seed has a letter or a digit in it": ["no-word"],
        "every seed is handwritten or harvested": ["bought"],
        "every harvested seed names its trace, so that deleting one finds it": ["no-trace"],
        "no handwritten seed names a trace": ["has-trace"],
        "every seed was added after 1999 and not in the future": ["future", "undated"],
        "the guard's embedder reads every seed to its end": ["too-long", "long"],
    }
    assert [s for s, critical in levels(outcome).items() if not critical] == [
        "the guard's embedder reads every seed to its end"
    ]


def test_a_thin_set_of_seeds_without_refusals_only_warns(seeds):
    outcome = evaluate_seeds(seeds.head(12).with_columns(tags=[]), now=NOW)
    assert levels(outcome) == {
        "there are at least 20 seeds, enough for every split": False,
        "5% to 50% of the handwritten seeds are tagged out_of_scope": False,
    }


def test_each_broken_case_breaks_its_own_promise(cases):
    answerable = cases.filter(pl.col("bucket") == "answerable")
    refusals = cases.filter(pl.col("bucket") == "out_of_scope").head(20)
    faults = {
        "unasked": {"question": "  "},
        "lost": {"bucket": "elsewhere"},
        "refuses": {"should_refuse": True, "must_include": [], "gold_pages": []},
        "no-fact": {"must_include": []},
        "no-page": {"gold_pages": []},
        "answers": {"bucket": "out_of_scope"},
        "fact-to-refuse": {"bucket": "boundary", "should_refuse": True, "gold_pages": []},
        "page-to-refuse": {"bucket": "boundary", "should_refuse": True, "must_include": []},
        "tells": {"question": "Is it 0.92 or 40?", "must_include": ["0.92"]},
        "twin": {"question": "Is IT 0.92  or 40?", "must_include": ["41"]},
    }
    frame = pl.concat([break_rows(answerable, "case_id", faults), refusals, refusals.tail(1)])
    outcome = evaluate_golden(frame, plan=GoldenPlan(cases_by_bucket={"answerable": 91}))
    repeated = refusals["case_id"][-1]
    assert broken(outcome) == {
        "every case has an id of its own": [repeated, repeated],
        "every bucket is a known one": ["lost"],
        "every answerable case expects an answer": ["refuses"],
        "every out-of-scope case expects a refusal": ["answers"],
        "every case that expects an answer has a fact to include": ["no-fact"],
        "every case that expects an answer has a gold page": ["no-page"],
        "no case that expects a refusal has a fact to include": ["fact-to-refuse"],
        "no case that expects a refusal has a gold page": ["page-to-refuse"],
        "the set has 91 answerable cases, as eval.cases_by_bucket says": [],
        "no question is asked twice: paired statistics count independent cases":
            ["tells", "twin", repeated, repeated],
        "no question states all the facts its answer is graded by": ["tells"],
        "every question has a letter or a digit in it": ["unasked"],
    }  # fmt: skip


def test_sound_examples_keep_every_promise(examples):
    assert evaluate_examples(examples, guard(examples), private_seeds=()).broken == ()


def test_each_broken_example_breaks_its_own_promise(examples):
    sound = make_example(99)["messages"]
    faults = {
        "half": {"split": "half"},
        "weightless": {"weight": 0.0},
        "unlicensed": {"teacher_license": " "},
        "unknown-licence": {"teacher_license": "Unknown"},
        "unasked": {"question": ""},
        "other": {"messages": [sound[0], {"role": "user", "content": "Another?"}]},
        "rewritten": {"question": "Another?"},  # and so asks its prompt, but the guard saw neither
        "leaked": {"weight": 1.0},  # sound, but for what the guard said of its question
        "turns": {"question": "Hm?", "messages": [*sound, {"role": "user", "content": "Hm?"}]},
        "long-refusal": {"refused": True, "completion": "REFUSE because I do not know"},
        "silent": {"completion": "[1]"},
        "uncited": {"completion": "The kiln reaches 1300 degrees."},
        "stray": {"completion": "It is hot [1] and far [7] [docs:kiln/9]."},
        "empty": {"completion": ""},
        "twin": {"question": "How hot is kiln 50?", "split": "calibration"},
        "bare-list": {"completion": "Hot [1] and [1, 2]."},
        "source": {"completion": "Hot [1] and [Source 2]."},
    }
    for row in faults.values():
        row.setdefault("refused", False)
        row.setdefault("completion", "The kiln reaches 1300 degrees. [1]")
        question = row.get("question")
        if question and "messages" not in row:
            row["messages"] = [sound[0], {"role": "user", "content": question}]
    faults["unasked"]["messages"] = [sound[0], {"role": "user", "content": ""}]
    broken_rows = break_rows(examples, "example_id", faults)
    leaked = guard(broken_rows.filter(example_id="leaked")).with_columns(verdict=pl.lit("rejected"))
    kept = guard(broken_rows.filter(pl.col("example_id") != "leaked"), rewritten="How hot is it?")
    outcome = evaluate_examples(broken_rows, pl.concat([kept, leaked]), private_seeds=())
    assert broken(outcome) == {
        "every split is a known one": ["half"],
        "no question stands in two splits, whatever seed it came from": ["twin", "e50"],
        "every weight is above 0 and at most 10": ["weightless"],
        "every example names the licence of its answer": ["unlicensed", "unknown-licence"],
        "every question has 1 to 4000 characters, like /ask": ["unasked"],
        "every question has a letter or a digit in it": ["unasked"],
        "every prompt is a system and a user message, as production writes it": ["turns"],
        "every prompt asks the question that the guard has kept": ["other", "rewritten", "leaked"],
        "every refusal is the bare word REFUSE": ["long-refusal"],
        "every answer says something beside its citations": ["silent", "empty"],
        "every answer cites a source": ["uncited", "empty"],
        "every citation is one of the sources in the prompt": ["stray"],
        "hardly any completion has a citation in another form, such as [1, 2]":
            ["bare-list", "source"],
    }  # fmt: skip
    (stray,) = next(p for p in outcome.broken if "one of the sources" in p.statement).rows
    assert stray.value == "[7] [docs:kiln/9]"


@pytest.mark.parametrize("is_private", [False, True])
def test_what_users_typed_is_told_by_id_alone(seeds, examples, is_private):
    canary = "heliotrope? " * 400
    source = {"source": "harvested", "source_trace_id": "0197"} if is_private else {}
    broken_seeds = break_rows(seeds, "question_id", {"asked": {"text": canary, **source}})
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": canary}]
    fault = {"seed_id": "asked", "question": canary, "messages": messages, "refused": False,
             "completion": "heliotrope [9]"}  # fmt: skip
    broken_rows = break_rows(examples, "example_id", {"e-asked": fault})
    private = list_private_seeds(broken_seeds)
    for outcome, row_id in (
        (evaluate_seeds(broken_seeds, now=NOW), "asked"),
        (evaluate_examples(broken_rows, guard(examples), private_seeds=private), "e-asked"),
    ):
        told = str(report_outcome(outcome).metadata)
        assert row_id in told
        assert ("heliotrope" in told) is not is_private


def test_examples_of_two_prompts_or_indexes_are_told_by_the_count(examples):
    mixed = examples.with_columns(
        pl.when(pl.int_range(pl.len()) < 3).then(pl.lit("old")).otherwise("index_fingerprint")
        .alias("index_fingerprint")
    )  # fmt: skip
    outcome = evaluate_examples(mixed, guard(mixed), private_seeds=())
    assert [(p.statement, p.observed, p.is_critical) for p in outcome.broken] == [
        ("all examples share one index_fingerprint", "2", True)
    ]


def test_shares_of_refusals_and_splits_only_warn(examples):
    answers = examples.filter(~pl.col("refused")).with_columns(split=pl.lit("train"))
    assert levels(evaluate_examples(answers, guard(answers), private_seeds=())) == {
        "2% to 60% of the examples are refusals": False,
        "50% to 90% of the examples are for training": False,
    }


def test_no_examples_at_all_is_an_error(examples):
    outcome = evaluate_examples(examples.clear(), guard(examples), private_seeds=())
    assert levels(outcome)["there are examples"]
