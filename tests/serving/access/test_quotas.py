from serving.access.quotas import Quotas


async def test_a_key_past_its_rate_is_told_when_to_come_back() -> None:
    quotas = Quotas()
    assert [await quotas.count_request("a", 3) for _ in range(3)] == [None] * 3
    exhausted = await quotas.count_request("a", 3)
    assert exhausted is not None
    assert "3 requests per minute" in exhausted.limit
    assert 1 <= exhausted.retry_after_seconds <= 120
    assert await quotas.count_request("b", 3) is None


async def test_a_refused_call_is_not_counted_against_the_other_limit() -> None:
    quotas = Quotas()
    limits = {"per_minute": 2, "per_day": 4}
    for _ in range(2):
        assert await quotas.count_teacher_call("a", **limits) is None
    for _ in range(10):
        refused = await quotas.count_teacher_call("a", **limits)
        assert refused is not None
        assert "minute" in refused.limit
    # The ten refusals took nothing from the day: two calls of four are left.
    for _ in range(2):
        assert await quotas.count_teacher_call("a", per_minute=100, per_day=4) is None
    past = await quotas.count_teacher_call("a", per_minute=100, per_day=4)
    assert past is not None
    assert "day" in past.limit


async def test_a_quota_of_nothing_allows_nothing() -> None:
    assert await Quotas().count_teacher_call("a", per_minute=0, per_day=9) is not None
    assert await Quotas().count_teacher_call("a", per_minute=9, per_day=0) is not None
