"""What is made by itself: traces every night, parity every week, never a first time."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from assets import keys
from assets.automation import choose_condition, choose_freshness, made_at

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
