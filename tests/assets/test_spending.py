"""What an asset reports of a meter that it shares with others."""

from assets.spending import describe_spending, note_spending, read_spending
from resources.spending import SpendMeter


class Metered:
    def __init__(self) -> None:
        self.meter = SpendMeter(budget_usd=2.0)


def test_each_asset_reports_what_it_spent_itself():
    model = Metered()
    model.meter.count_bought(0.5)
    before = read_spending(model)
    model.meter.count_bought(0.25)
    model.meter.reused_count += 3
    assert describe_spending(model, since=before) == {
        "spent_usd": 0.25,
        "lost_usd": 0.0,
        "bought_count": 1,
        "reused_count": 3,
    }
    assert note_spending(model) == "$0.75 of 2.00 · 2 bought, 3 reused"


def test_a_model_without_a_meter_reports_nothing():
    assert read_spending(object()) == {}
    assert describe_spending(object(), since={}) == {}
    assert note_spending(object()) == ""
