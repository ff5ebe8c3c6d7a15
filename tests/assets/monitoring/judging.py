"""From measurements to the one row that says whether a monitor alarms."""

from assets.monitoring.alarms import raise_alarms
from assets.monitoring.measurements import tabulate_measurements
from tests.assets.monitoring.weeks import START, WEEK


def judge(monitor, measurements):
    """Return the monitor's row of `alarms`, as a night with this monitor alone would have it."""
    frame = tabulate_measurements(monitor, measurements, start=START + WEEK, end=START + 2 * WEEK)
    rows = {row["monitor"]: row for row in raise_alarms(frame).iter_rows(named=True)}
    return rows[monitor]
