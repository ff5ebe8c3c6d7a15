"""What a metered model spent: one line while a loop runs, numbers in an asset's metadata.

Belongs here: reading a meter, for every stage alike. Does not belong here: the meter and its budget
(`resources/spending`).
"""

from collections.abc import Mapping


def note_spending(model: object) -> str:
    """Return what a metered model spent, bought and reused so far; empty for others."""
    meter = getattr(model, "meter", None)
    return "" if meter is None else str(meter.describe())


def read_spending(model: object) -> dict[str, float | int]:
    """Return what a metered model spent (US dollars), bought and reused; empty for others."""
    meter = getattr(model, "meter", None)
    if meter is None:
        return {}
    return {
        "spent_usd": float(meter.spent_usd),
        "lost_usd": float(meter.lost_usd),
        "bought_count": int(meter.bought_count),
        "reused_count": int(meter.reused_count),
    }


def describe_spending(model: object, *, since: Mapping[str, float | int]) -> dict[str, float | int]:
    """Return what a metered model spent since it was read: several assets share one meter.

    Args:
        model: of the asset.
        since: `read_spending` of the model before the asset asked anything.
    """
    return {name: value - since[name] for name, value in read_spending(model).items()}
