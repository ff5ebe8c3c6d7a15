"""Which assets a run would make: the decision, without Dagster."""

import hashlib
from dataclasses import replace

from orchestration.planning import AssetState, Materialized, find_blockers, plan_run
from orchestration.running import choose_assets

SOURCE = AssetState(
    key="corpus/source_files", code_version=None, upstream=(), latest=None, source_version="v1"
)
PAGES = AssetState(
    key="corpus/pages",
    code_version="1",
    upstream=("corpus/source_files",),
    latest=Materialized(
        code_version="1", data_version="p1", input_versions={"corpus/source_files": "v1"}
    ),
)
CHUNKS = AssetState(
    key="corpus/chunks",
    code_version="1",
    upstream=("corpus/pages",),
    latest=Materialized(code_version="1", data_version="c1", input_versions={"corpus/pages": "p1"}),
)


def reasons(*states: AssetState) -> dict[str, str]:
    return {planned.key: planned.reason for planned in plan_run(states)}


def test_nothing_is_planned_when_nothing_changed():
    assert reasons(SOURCE, PAGES, CHUNKS) == {}


def test_a_changed_source_plans_everything_downstream():
    changed = replace(SOURCE, source_version="v2")
    assert reasons(changed, PAGES, CHUNKS) == {
        "corpus/pages": "corpus/source_files changed",
        "corpus/chunks": "corpus/pages will change",
    }


def test_an_asset_never_made_is_planned():
    assert reasons(SOURCE, PAGES, replace(CHUNKS, latest=None)) == {"corpus/chunks": "never made"}


def test_new_code_plans_the_asset_and_its_downstream():
    assert reasons(SOURCE, replace(PAGES, code_version="2"), CHUNKS) == {
        "corpus/pages": "its code or configuration changed",
        "corpus/chunks": "corpus/pages will change",
    }


def test_an_upstream_made_elsewhere_since_is_noticed():
    remade = replace(PAGES, latest=replace(PAGES.latest, data_version="p2"))
    assert reasons(SOURCE, remade, CHUNKS) == {"corpus/chunks": "corpus/pages changed"}


def test_a_check_that_has_not_passed_plans_the_asset_again_so_that_it_gates():
    failed = replace(PAGES, latest=replace(PAGES.latest, unpassed_checks=("every_page_has_text",)))
    assert reasons(SOURCE, failed, CHUNKS) == {
        "corpus/pages": "its check every_page_has_text has not passed",
        "corpus/chunks": "corpus/pages will change",
    }


def test_a_table_that_is_gone_from_disk_is_made_again():
    gone = replace(PAGES, latest=replace(PAGES.latest, is_stored=False))
    assert reasons(SOURCE, gone, CHUNKS) == {
        "corpus/pages": "what it made is damaged or gone from disk",
        "corpus/chunks": "corpus/pages will change",
    }


GOLDEN = AssetState(
    key="eval_set/golden_cases",
    code_version="1",
    upstream=(),
    check_inputs=("corpus/pages",),
    latest=Materialized(
        code_version="1",
        data_version="g1",
        input_versions={},
        checked_against={"corpus/pages": "p1"},
    ),
)
EMBEDDINGS = AssetState(
    key="eval_set/eval_embeddings",
    code_version="1",
    upstream=("eval_set/golden_cases",),
    latest=Materialized(
        code_version="1", data_version="e1", input_versions={"eval_set/golden_cases": "g1"}
    ),
)


def test_what_a_check_reads_plans_its_asset_and_what_it_gates():
    assert reasons(GOLDEN, EMBEDDINGS, SOURCE, PAGES) == {}
    changed = replace(SOURCE, source_version="v2")
    assert reasons(GOLDEN, EMBEDDINGS, changed, PAGES) == {
        "eval_set/golden_cases": "its check reads corpus/pages, which will change",
        "eval_set/eval_embeddings": "eval_set/golden_cases will change",
        "corpus/pages": "corpus/source_files changed",
    }
    remade = replace(PAGES, latest=replace(PAGES.latest, data_version="p2"))
    assert reasons(GOLDEN, EMBEDDINGS, SOURCE, remade) == {
        "eval_set/golden_cases": "its check reads corpus/pages, which changed",
        "eval_set/eval_embeddings": "eval_set/golden_cases will change",
    }


def test_blockers_are_what_a_selection_needs_and_does_not_make():
    states = [SOURCE, replace(PAGES, latest=None), replace(CHUNKS, latest=None), GOLDEN]
    assert find_blockers(states, ["corpus/chunks"]) == {"corpus/pages": "was never made"}
    assert find_blockers(states, ["corpus/chunks", "corpus/pages"]) == {}
    assert find_blockers(states, ["eval_set/golden_cases"]) == {"corpus/pages": "was never made"}


def test_a_failed_check_of_an_unselected_upstream_blocks():
    failed = replace(PAGES, latest=replace(PAGES.latest, unpassed_checks=("every_page_has_text",)))
    assert find_blockers([SOURCE, failed, CHUNKS], ["corpus/chunks"]) == {
        "corpus/pages": "has not passed its check every_page_has_text"
    }
    index = replace(CHUNKS, key="corpus/vector_index", upstream=("corpus/chunks",))
    assert list(find_blockers([SOURCE, failed, CHUNKS, index], [index.key])) == ["corpus/pages"]


def test_a_partitions_version_is_hashed_as_dagster_hashes_it():
    recorded = hashlib.sha256(b"p1").hexdigest()
    downstream = replace(
        CHUNKS, latest=replace(CHUNKS.latest, input_versions={"corpus/pages": recorded})
    )
    assert reasons(SOURCE, replace(PAGES, is_partitioned=True), downstream) == {}


def test_a_selection_leaves_out_what_is_on_demand_unless_named_or_the_whole_of_its_stage():
    names = ["corpus/pages", "paraphrases/paraphrases", "paraphrases/dreamed_questions",
             "monitoring/traffic_drift", "monitoring/alarms"]  # fmt: skip
    assert choose_assets(names, []) == names[:2]
    assert choose_assets(names, ["paraphrases"]) == names[1:2]
    assert choose_assets(names, ["paraphrases/dreamed_questions"]) == names[2:3]
    assert choose_assets(names, ["monitoring"]) == names[3:]
    assert choose_assets(names, ["monitoring/alarms", "corpus"]) == [names[0], names[4]]
