"""The HTML report of a night: what alarms, what cannot be told yet, and every number behind it.

Belongs here: arranging rows. Does not belong here: deciding (`alarms`), Evidently's drift report
(`drift_report`). The template escapes everything and runs no script.
"""

from pathlib import Path

import jinja2
import polars as pl

from serving.files import PRIVATE_MODE, atomic_path

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Monitoring</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { background: #faf9f6; color: #21201d; font: 15px/1.5 system-ui, sans-serif;
       max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem;
         border-bottom: 1px solid #e3dfd6; }
th { color: #67635b; font-weight: 600; } td.number { font-variant-numeric: tabular-nums; }
.alarm, .past { color: #b3321f; font-weight: 600; } .inconclusive { color: #67635b; }
</style></head><body>
<h1>{% if alarming %}{{ alarming }} of {{ alarms|length }} monitors alarm
{% else %}No monitor alarms{% endif %}</h1>
<p>{{ start }} to {{ end }} (UTC). {{ open }} could not tell: the reason stands beside each.</p>
<table><tr><th>monitor</th><th>status</th><th>measure</th><th>number</th><th>limit</th><th>n</th>
<th>what was found</th></tr>
{% for row in alarms %}
<tr><td>{{ row.monitor|words }}</td><td class="{{ row.status }}">{{ row.status }}</td>
<td>{{ (row.metric or '')|words }}</td><td class="number">{{ row.number|short }}</td>
<td class="number">{{ row.relation or '' }} {{ row.limit|short }}</td>
<td class="number">{{ row.n if row.n is not none else '' }}</td><td>{{ row.detail }}</td></tr>
{% endfor %}
</table>
<h2>Every measurement</h2>
<table><tr><th>monitor</th><th>measure</th><th>of</th><th>outcome</th><th>number</th>
<th>interval</th><th>limit</th><th>p</th><th>n</th></tr>
{% for row in measured %}
<tr><td>{{ row.monitor|words }}</td><td>{{ row.metric|words }}</td><td>{{ row.slice }}</td>
<td class="{{ row.outcome }}">{{ row.outcome }}</td><td class="number">{{ row.number|short }}</td>
<td class="number">{% if row.lower is not none %}{{ row.lower|short }} to {{ row.upper|short }}
{% endif %}</td><td class="number">{{ row.relation or '' }} {{ row.limit|short }}</td>
<td class="number">{{ row.p_value|short }}</td><td class="number">{{ row.n }}</td></tr>
{% endfor %}
</table></body></html>
"""


def render_alarms(alarms: pl.DataFrame, measured: pl.DataFrame) -> str:
    """Return the night as one HTML document that needs no network."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["words"] = lambda name: str(name).replace("_", " ")
    environment.filters["short"] = lambda x: "" if x is None else f"{x:.4g}"
    start, end = measured.select("window_start", "window_end").row(0)
    order = {"alarm": 0, "inconclusive": 1, "ok": 2}
    return environment.from_string(TEMPLATE).render(
        alarms=sorted(alarms.to_dicts(), key=lambda row: order[row["status"]]),
        measured=measured.to_dicts(),
        alarming=alarms.filter(status="alarm").height,
        open=alarms.filter(status="inconclusive").height,
        start=f"{start:%Y-%m-%d %H:%M}",
        end=f"{end:%Y-%m-%d %H:%M}",
    )


def write_alarm_report(folder: Path, alarms: pl.DataFrame, measured: pl.DataFrame) -> Path:
    """Write `alarms.html` and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "alarms.html"
    with atomic_path(path) as temporary:
        temporary.touch()
        temporary.chmod(PRIVATE_MODE)
        temporary.write_text(render_alarms(alarms, measured), encoding="utf-8")
    return path
