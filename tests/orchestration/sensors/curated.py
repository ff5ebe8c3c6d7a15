"""A home that curation has worked in: traces of the real server, decisions, a judged student."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import polars as pl
import yaml

from assets import keys
from assets.traces.deciding import Reviewer, decide_trace, open_decisions
from assets.traces.hours import find_folder, list_hours, scan_hours
from orchestration.config import Config, read_config
from orchestration.curate_cli import compact
from orchestration.traffic import plan_traffic
from serving.home import Home
from tests.assets.traces.served import make_keys, serve_plan
from tests.product import write_product

TOPICS = {
    "hard": [f"How do I deploy release 3{n} of my project?" for n in range(60)],
    "easy": [f"How do I deploy release {n} of my project?" for n in range(9) if n != 3],
}
"""The canned student cannot answer the hard ones: they fall back to the teacher."""

BOT = Reviewer(name="triage", kind="automation")


def write_curated(folder: Path, **loop: object) -> Config:
    """Return the product's configuration, its home holding a day of twelve customers' traces."""
    path = write_product(folder)
    values = yaml.safe_load(path.read_text(encoding="utf-8")) | {"loop": loop}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    config = read_config(path)
    customers = make_keys(config.home, 12)
    plan = plan_traffic(TOPICS, days=1, asks_per_day=160, seed=1, key_count=12)
    serve_plan(config.home, plan, keys=customers)
    compact(Home(config.home))
    return config


def read_records(config: Config) -> pl.DataFrame:
    """Return every stored record, oldest first."""
    return scan_hours(list_hours(find_folder(Home(config.home)))).collect().sort("trace_id")


def choose_rows(config: Config, served_by: str) -> list[dict]:
    """Return one trainable, answered trace of each customer, each of another question."""
    rows = read_records(config).filter(
        pl.col("trainable"), ~pl.col("is_injection"),
        pl.col("served_by") == served_by, ~pl.col("escalation_requested"),
    )  # fmt: skip
    rows = rows.unique("question_hash", keep="first", maintain_order=True)
    return rows.unique("key_id", keep="first", maintain_order=True).to_dicts()


def accept(config: Config, rows: list[dict], *, at: datetime | None = None) -> None:
    """Let a rubric accept traces, a second apart."""
    start = at or datetime.now(UTC) + timedelta(hours=1)
    for number, row in enumerate(rows):
        line = decide_trace(
            row, verdict="accepted", reason_code="weak_spot", reviewer=BOT, shown_at=None,
            decided_at=start + timedelta(seconds=number),
        )  # fmt: skip
        open_decisions(Home(config.home)).append(line)


def report_student(instance: dg.DagsterInstance, recipe: str = "tiny") -> None:
    """Report what the chain does in the end: seeds were made, then a student was judged."""
    instance.add_dynamic_partitions("recipes", [recipe])
    for key, partition in ((keys.SEED_QUESTIONS, None), (keys.GATE_VERDICT, recipe)):
        instance.report_runless_asset_event(
            dg.AssetMaterialization(asset_key=key, partition=partition)
        )
