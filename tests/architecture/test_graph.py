"""The asset graph is a public interface: its order, its names, its promises."""

import dagster as dg
import pytest

from assets import STAGES, keys, tables
from orchestration.definitions import build_defs


@pytest.fixture(scope="module")
def graph():
    return build_defs().resolve_asset_graph()


@pytest.fixture(scope="module")
def made(graph):
    return [
        graph.get(key) for key in graph.toposorted_asset_keys if graph.get(key).is_materializable
    ]


def test_every_edge_points_from_an_earlier_stage_to_the_same_or_a_later_one(graph):
    order = {stage: position for position, stage in enumerate(STAGES)}
    backwards = [
        f"{parent.to_user_string()} -> {key.to_user_string()}"
        for key in graph.toposorted_asset_keys
        for parent in graph.get(key).parent_keys
        if order[parent.path[0]] > order[key.path[0]]
    ]
    assert backwards == []


def test_every_asset_key_is_stage_and_noun_and_its_group_is_the_stage(graph):
    for key in graph.toposorted_asset_keys:
        assert len(key.path) == 2
        assert key.path[0] in STAGES
        assert graph.get(key).group_name == key.path[0]


def test_every_asset_says_who_what_and_which_version(made):
    for node in made:
        name = node.key.to_user_string()
        assert node.owners, f"{name} has no owner"
        assert node.kinds, f"{name} has no kinds"
        assert node.code_version, f"{name} has no code version"
        assert node.description, f"{name} has no docstring"


def test_every_asset_has_a_check_and_blocks_unless_its_docstring_says_why_not(graph, made):
    checked = {check.asset_key for check in graph.asset_check_keys}
    assert [node.key.to_user_string() for node in made if node.key not in checked] == []
    for check in graph.asset_check_keys:
        spec = graph.get_check_spec(check)
        assert spec.blocking or "does not block" in (spec.description or ""), check.name


def test_every_table_has_a_declared_schema_that_the_ui_shows(made):
    for node in made:
        schema = tables.BY_KEY[tuple(node.key.path)]
        shown = node.metadata["dagster/column_schema"]
        columns = getattr(shown, "schema", shown).columns
        assert [column.name for column in columns] == schema.names()


def test_the_graph_is_the_one_the_documentation_lists(graph):
    assert [key.to_user_string() for key in sorted(graph.get_all_asset_keys())] == sorted(
        [
            "corpus/source_files", "corpus/pages", "corpus/chunks", "corpus/vector_index",
            "traces/trace_segments", "traces/feedback_segments", "traces/decision_journal",
            "traces/deletion_journal", "traces/hourly_records", "traces/quarantined_frames",
            "traces/trace_records", "traces/feedback", "traces/curation_decisions",
            "traces/admissions", "traces/escalations", "traces/deletions",
            "seeds/seed_file", "seeds/harvested_file", "seeds/seed_questions",
            "eval_set/golden_file", "eval_set/golden_cases", "eval_set/eval_embeddings",
            "eval_set/guard_recall", "eval_set/suite_files", "eval_set/refusal_suite",
            "eval_set/over_refusal_suite", "eval_set/behaviour_registry", "eval_set/judge_anchors",
            "paraphrases/seed_clusters", "paraphrases/paraphrases", "paraphrases/guarded_questions",
            "paraphrases/dreamed_questions", "paraphrases/dream_journal",
            "labels/teacher_answers", "labels/judged_answers", "labels/labelled_examples",
            "labels/rejected_examples", "labels/teacher_logprobs", "labels/contaminated_examples",
            "labels/refusal_rule",
            "students/recipe_file", "students/training_set", "students/student_adapter",
            "students/training_curve", "students/held_out_answers", "students/validation_report",
            "students/calibration",
            "parity/smaller_students", "parity/operating_points", "parity/arm_answers",
            "parity/graded_answers",
            "parity/parity_report", "parity/router_curve", "parity/router_figures",
            "parity/economics", "parity/suitability", "parity/experiment_report",
            "parity/suite_answers", "parity/suite_gates", "parity/judge_anchor_run",
            "releases/gate_verdict", "releases/skill_students", "releases/release_bundle",
            "monitoring/shadow_agreement", "monitoring/disagreement_clusters",
            "monitoring/traffic_drift", "monitoring/served_by_slices",
            "monitoring/embedder_probe", "monitoring/assignment_audit",
            "monitoring/cold_start_report", "monitoring/sample_audit",
            "monitoring/pool_separation", "monitoring/curation_audit", "monitoring/alarms",
        ]
    )  # fmt: skip


def test_no_io_manager_of_dagster_that_pickles_is_used():
    defs = build_defs()
    assert not isinstance(defs.resources["io_manager"], dg.FilesystemIOManager)


def test_no_path_leads_from_feedback_to_anything(graph):
    for key in (keys.FEEDBACK_SEGMENTS, keys.FEEDBACK):
        downstream = dg.AssetSelection.assets(key).downstream().resolve(graph)
        assert downstream - {keys.FEEDBACK_SEGMENTS, keys.FEEDBACK} == set()
        readers = [
            check.name
            for check in graph.asset_check_keys
            if key in {dep.asset_key for dep in graph.get_check_spec(check).additional_deps}
        ]
        assert readers == []


def test_no_trace_is_upstream_of_what_trains(graph):
    upstream = dg.AssetSelection.groups("students").upstream().resolve(graph)
    assert {key for key in upstream if key.path[0] == "traces"} == set()
