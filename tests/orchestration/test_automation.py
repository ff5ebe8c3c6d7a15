"""What is made by itself: traces every night, parity every week, never a first time."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from assets import keys
from assets.automation import choose_condition, choose_freshness, made_at
from assets.partitions import RECIPES
from orchestration.config import read_config
from orchestration.definitions import build_nightly_defs
from tests.product import write_product

MONDAY = datetime(2026, 3, 2, 12, tzinfo=UTC)
KEYS = (keys.HOURLY_RECORDS, keys.ALARMS, keys.PARITY_REPORT, keys.STUDENT_ADAPTER)


def declare(key: dg.AssetKey) -> dg.AssetsDefinition:
    @dg.asset(key=key, automation_condition=choose_condition(key))
    def made() -> None: ...

    return made


@pytest.fixture
def evaluate():
    definitions = dg.Definitions(assets=[declare(key) for key in KEYS])
    with dg.instance_for_test() as instance:
        cursor = None

        def at(moment: datetime) -> set[dg.AssetKey]:
            nonlocal cursor
            result = dg.evaluate_automation_conditions(
                defs=definitions, instance=instance, evaluation_time=moment, cursor=cursor
            )
            cursor = result.cursor
            return {key for key in KEYS if result.get_num_requested(key)}

        yield at, instance


def test_nights_and_weeks_come_once_each_and_a_student_never(evaluate):
    at, instance = evaluate
    for key in KEYS:
        instance.report_runless_asset_event(dg.AssetMaterialization(asset_key=key))
    assert at(MONDAY) == set()
    night = MONDAY.replace(hour=3, minute=1) + timedelta(days=1)
    assert at(night) == {keys.HOURLY_RECORDS, keys.ALARMS}
    assert at(night + timedelta(hours=5)) == set()
    later = MONDAY.replace(hour=4, minute=1) + timedelta(days=7)
    assert at(later) == {keys.HOURLY_RECORDS, keys.ALARMS, keys.PARITY_REPORT}


def test_the_first_time_is_a_persons(evaluate):
    at, _ = evaluate
    assert at(MONDAY) == set()
    assert at(MONDAY + timedelta(days=8)) == set()


def test_what_is_made_by_itself_may_not_age_unnoticed():
    fresh = choose_freshness(keys.HOURLY_RECORDS)
    assert fresh is not None
    assert choose_freshness(keys.PARITY_REPORT) is not None
    assert choose_freshness(keys.STUDENT_ADAPTER) is None
    assert choose_condition(keys.SUITE_ANSWERS) is None
    assert "0 3 * * *" in str(made_at("0 3 * * *").get_label())


@pytest.fixture(scope="module")
def nightly(tmp_path_factory):
    """What a daemon loads: the whole graph, dbt marts among it."""
    return build_nightly_defs(read_config(write_product(tmp_path_factory.mktemp("nightly"))))


def test_the_whole_graph_asks_for_its_nights_and_weeks_and_for_nothing_that_trains(nightly):
    graph = nightly.resolve_asset_graph()
    made = graph.materializable_asset_keys
    nights = {key for key in made if key.path[0] in {"traces", "monitoring"}}
    weeks = {key for key in made if key.path[0] == "parity"} - keys.ON_DEMAND
    assert {dg.AssetKey(["traces", "asks"]), keys.HOURLY_RECORDS, keys.ALARMS} <= nights
    assert {keys.PARITY_REPORT, keys.ROUTER_CURVE} <= weeks
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions(RECIPES.name, ["tiny"])
        for key in made:
            partition = "tiny" if graph.get(key).is_partitioned else None
            event = dg.AssetMaterialization(asset_key=key, partition=partition)
            instance.report_runless_asset_event(event)
        cursor, asked = None, []
        for moment in (
            MONDAY,
            MONDAY.replace(hour=3, minute=1) + timedelta(days=1),
            MONDAY.replace(hour=3, minute=2) + timedelta(days=1),
            MONDAY.replace(hour=4, minute=1) + timedelta(days=7),
        ):
            result = dg.evaluate_automation_conditions(
                defs=nightly, instance=instance, evaluation_time=moment, cursor=cursor
            )
            cursor = result.cursor
            asked.append({key for key in made if result.get_num_requested(key)})
    assert asked == [set(), nights, set(), nights | weeks]
