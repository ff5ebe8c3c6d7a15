"""Which assets a run would make: the decision, without Dagster."""

import hashlib
from dataclasses import replace

from orchestration.planning import AssetState, Materialized, plan_run

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


def test_a_failed_check_plans_the_asset_again_so_that_it_gates():
    failed = replace(PAGES, latest=replace(PAGES.latest, failed_checks=("every_page_has_text",)))
    assert reasons(SOURCE, failed, CHUNKS) == {
        "corpus/pages": "its check every_page_has_text failed",
        "corpus/chunks": "corpus/pages will change",
    }


def test_a_partitions_version_is_hashed_as_dagster_hashes_it():
    recorded = hashlib.sha256(b"p1").hexdigest()
    downstream = replace(
        CHUNKS, latest=replace(CHUNKS.latest, input_versions={"corpus/pages": recorded})
    )
    assert reasons(SOURCE, replace(PAGES, is_partitioned=True), downstream) == {}
