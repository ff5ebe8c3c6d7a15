"""What exists: every table, adapter, report and release, as stages of one pipeline.

`STAGES` is the order in which stages are loaded and grouped, in which they may import each other,
and in which every edge of the asset graph points. Belongs here: declarations (`assets.py`),
promises (`checks.py`) and the pure functions that compute them. Does not belong here: SDKs and
credentials (`resources`), schedules and environments (`orchestration`), what production runs
(`serving`).
"""

STAGES = (
    "corpus",
    "traces",
    "seeds",
    "eval_set",
    "paraphrases",
    "labels",
    "students",
    "parity",
    "releases",
    "monitoring",
)
