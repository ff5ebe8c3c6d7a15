"""Which keys of the configuration make which stage stale: all of them, or a reason why not.

And who waits for whom: assets that buy answers of one model do so one run at a time.
"""

from types import UnionType
from typing import Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from assets import STAGES
from orchestration.config import Config, PriceSection, load_config
from orchestration.definitions import CONFIG_KEYS, build_defs, fingerprint_stage

DECIDES_NOTHING = {
    "home": "where things lie is not what they say",
    "recipes": "each recipe file is a source with its own version",
    "default_recipe": "chooses a partition, changes none",
    "source": "the path of the config file itself",
    "product.corpus.path": "the pages are a source with its own version",
    "seeds.path": "the seed file is a source with its own version",
    "seeds.harvested": "the harvested file is a source with its own version",
    "eval.golden": "the golden file is a source with its own version",
    **{
        f"eval.suites.{suite}": "the files of the suites are a source with its own version"
        for suite in ("refusal", "over_refusal", "behaviours", "anchors", "ratings")
    },
    "experiments.*.against": "a prediction; its report is made on demand",
    "experiments.*.predicted_delta.*": "a prediction; its report is made on demand",
    "experiments.*.description": "words for readers",
    "teacher.budget_usd": "stops a run, changes no answer",
    "teacher.concurrency": "speed only",
    "judge.budget_usd": "stops a run, changes no answer",
    "judge.concurrency": "speed only",
    "judge.timeout_seconds": "speed only; a release holds no judge",
    "judge.api_key_env": "a key changes no answer; a release holds no judge",
    "judge.price": "only the budget counts it",
    "teacher.deadline_seconds": "how long an answer is waited for, not what it says",
    "judge.deadline_seconds": "how long an answer is waited for, not what it says",
    "teacher.pinned": "the owner's word on a name, which stays the same",
    "judge.pinned": "the owner's word on a name, which stays the same",
    "teacher.structured_output": "how JSON is asked for; a reply that reads is as good",
    "judge.structured_output": "how JSON is asked for; a reply that reads is as good",
    "students.*.budget_usd": "stops a run, changes no answer",
    "students.*.concurrency": "speed only",
    "students.*.deadline_seconds": "how long an answer is waited for, not what it says",
    "students.*.pinned": "the owner's word on a name, which stays the same",
    "scorer.base_url": "scores are the model's and revision's, wherever it is served",
    "scorer.api_key_env": "a key changes no score",
    "scorer.timeout_seconds": "speed only",
    "scorer.deadline_seconds": "speed only",
    "scorer.concurrency": "speed only",
    "loop.minimum_teacher_traces": "says when to train, not what comes of it",
    "loop.minimum_after_drift": "says when to train, not what comes of it",
    "loop.maximum_attempts": "stops runs, changes no answer",
    "loop.maximum_eval_age_days": "says when to measure, not what comes of it",
    "loop.retrain": "says who starts a training, not what comes of it",
    "loop.dream_questions": "stops a night; what was written is kept",
    "loop.dream_budget_usd": "stops a night; what was written is kept",
    "loop.dream_hours": "says when, not what",
    "loop.servers": "are looked at, never built on",
    "loop.maximum_cold_seconds": "says when to alarm",
}


def list_leaves(model: type[BaseModel], prefix: str = "") -> list[str]:
    leaves = []
    for name, info in model.model_fields.items():
        nested, path = find_section(info.annotation), f"{prefix}{name}"
        if get_origin(info.annotation) is dict:
            path += ".*"
        if (
            nested is None or nested is PriceSection
        ):  # a price is one value: in and out belong together
            leaves.append(path)
        else:
            leaves += list_leaves(nested, f"{path}.")
    return leaves


def find_section(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in {Union, UnionType, dict}:
        return next(filter(None, map(find_section, get_args(annotation))), None)
    return None


def covers(declared: str, leaf: str) -> bool:
    plain = leaf.replace(".*", "") if "*" not in declared else leaf
    return plain == declared or plain.startswith(f"{declared}.")


@pytest.mark.parametrize("leaf", list_leaves(Config))
def test_every_key_makes_some_stage_stale_or_is_named_with_a_reason(leaf):
    stages = [stage for stage, keys in CONFIG_KEYS.items() if any(covers(k, leaf) for k in keys)]
    assert bool(stages) != (leaf in DECIDES_NOTHING), (leaf, stages)


def test_every_stage_has_its_keys_and_no_exception_is_left_over():
    assert list(CONFIG_KEYS) == list(STAGES)
    assert set(list_leaves(Config)) >= set(DECIDES_NOTHING)


@pytest.mark.parametrize(
    ("section", "change", "stages"),
    [
        ("teacher", {"trainable": False}, {"labels"}),
        ("teacher", {"license": "other"}, {"labels"}),
        ("teacher", {"timeout_seconds": 1.0}, {"releases"}),
        ("teacher", {"price": PriceSection(input_usd_per_mtok=9)}, {"parity", "releases"}),
        ("teacher", {"budget_usd": 1.0, "concurrency": 1}, set()),
        ("teacher", {"model": "other"}, {"paraphrases", "labels", "parity", "releases"}),
        (
            "teacher",
            {"base_url": "https://other/v1"},
            {"paraphrases", "labels", "parity", "releases"},
        ),
        ("judge", {"base_url": "https://other/v1"}, {"labels", "parity"}),
        ("judge", {"minimum_score": 2}, {"labels"}),
        ("eval", {"cases_by_bucket": {"answerable": 1}}, {"eval_set"}),
        ("retrieval", {"k": 9}, {"labels", "parity", "releases"}),
        ("gates", {"suite_margin_ratio": 0.02}, {"parity", "releases"}),
        ("gates", {"minimum_agreement_ratio": 0.9}, {"releases", "monitoring"}),
    ],
)
def test_a_changed_key_makes_exactly_its_stages_stale(section, change, stages):
    config = load_config({})
    changed = config.model_copy(
        update={section: getattr(config, section).model_copy(update=change)}
    )
    assert {s for s in STAGES if fingerprint_stage(s, config) != fingerprint_stage(s, changed)} == (
        stages
    )


def test_stating_a_price_as_zero_makes_what_was_unpriced_stale():
    config = load_config({})
    tables = {}
    for name, price in (
        ("unstated", {}),
        ("zero", {"input_usd_per_mtok": 0, "output_usd_per_mtok": 0}),
    ):
        teacher = config.teacher.model_copy(update={"price": PriceSection(**price)})
        changed = config.model_copy(update={"teacher": teacher})
        tables[name] = fingerprint_stage("parity", changed)
    assert tables["unstated"] != tables["zero"]


def test_a_students_answer_limit_makes_the_labels_stale():
    config = load_config({})
    student = config.students["compact"].model_copy(update={"max_answer_tokens": 7})
    changed = config.model_copy(update={"students": {"compact": student}})
    assert fingerprint_stage("labels", config) != fingerprint_stage("labels", changed)
    assert fingerprint_stage("corpus", config) == fingerprint_stage("corpus", changed)


def test_every_asset_that_buys_answers_names_the_pool_of_who_is_asked():
    pools = {
        asset.key.to_user_string(): asset.op.pools
        for asset in build_defs().resolve_asset_graph().assets_defs
        if asset.is_executable and asset.keys and is_buyer(asset.required_resource_keys)
    }
    assert pools == {
        "paraphrases/paraphrases": {"teacher"},
        "paraphrases/dreamed_questions": {"teacher"},
        "labels/teacher_answers": {"teacher"},
        "labels/contaminated_examples": {"teacher"},
        "labels/judged_answers": {"judge"},
        "students/held_out_answers": {"student"},  # a student answers; so in the next two
        "parity/arm_answers": {"student"},
        "parity/suite_answers": {"student"},
        "parity/graded_answers": {"judge"},
        "parity/judge_anchor_run": {"judge"},
    }


def is_buyer(resources: set[str]) -> bool:
    """What only reads the pipeline's policies has no progress to report."""
    return bool(resources & {"teacher", "dreamer", "judge"}) or (
        {"pipeline_parts", "progress"} <= resources
    )
