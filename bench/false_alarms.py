"""How often monitoring alarms although nothing is wrong: the share of quiet weeks with any alarm.

Run: `python -m bench.false_alarms [--weeks 20] [--looks 7] [--json]`; `--weeks 400` is the full
size. Two quiet weeks go through the real server's app (canned models, real questions, canary and
shadow on; the student parts from the teacher on 4 % of them, where 5 % may be). Each simulated week
draws whole conversations of theirs with replacement, draws every conversation's arm anew with the
server's own draw, and is then judged as every night of that week would be: the seven days before
against the week before those. Curation decides about the first half of its queue. Everything the
monitors compare comes from one distribution, so each alarm is a false one.
"""

import argparse
import gc
import json
import os
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl

from assets import tables
from assets.monitoring.agreement import measure_agreement, pair_questions
from assets.monitoring.alarms import WEEKLY_ALPHA, judge_measurements
from assets.monitoring.assignment import measure_assignment
from assets.monitoring.clusters import judge_clusters, tabulate_clusters
from assets.monitoring.cold_starts import measure_cold_starts
from assets.monitoring.drift import gather_drift, measure_drift
from assets.monitoring.measurements import MonitoringPlan, tabulate_measurements
from assets.monitoring.probing import measure_fingerprints
from assets.monitoring.sampling import CURATED, draw_stratified, measure_samples, take_curated
from assets.monitoring.separation import TrainingSpan, measure_separation
from assets.monitoring.slices import measure_slices
from assets.monitoring.traffic import Traffic, split_traffic
from assets.releases.disagreements import Registry, cluster_pairs
from assets.statistics import clopper_pearson_interval
from assets.traces.curating import find_candidates
from serving.models.embedder import load_embedder
from serving.models.protocols import Embedder, Vectors
from serving.pipeline.canary import draw_conversation
from tests.assets.monitoring.weeks import START, WEEK, Faults, serve_week

CANARY_RATIO = 0.5
LAPSE_RATIO = 0.04  # of a student that is as good as it has to be, and not much better
DAY = timedelta(days=1)
FINGERPRINTS = ("feedfacefeedface", "e0e0")


class RememberedEmbedder:
    """The embedder, asked once per text: the same few hundred questions are drawn again and again.

    It keeps nothing on disk, and its vectors are the embedder's own.
    """

    def __init__(self, inner: Embedder) -> None:
        """Wrap the model."""
        self._inner = inner
        self._known: dict[str, Vectors] = {}
        self.fingerprint = inner.fingerprint
        self.dimension = inner.dimension
        self.maximum_tokens = inner.maximum_tokens
        self.count_tokens = inner.count_tokens

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return [len(texts), dimension]."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        self._known |= dict(zip(new, self._inner.embed(new), strict=True))
        return np.stack([self._known[text] for text in texts])


def main() -> None:
    """Print the share of weeks with an alarm, and by monitor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weeks", type=int, default=20)
    parser.add_argument("--looks", type=int, default=7, help="nights of a week that are judged")
    parser.add_argument("--asks-per-day", type=int, default=100)
    parser.add_argument("--lapse-ratio", type=float, default=LAPSE_RATIO, help="of the student")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pool = serve_pool(
            Path(folder), asks_per_day=options.asks_per_day, lapse_ratio=options.lapse_ratio
        )
    models = Path(".understudy") / "models"
    embedder = RememberedEmbedder(
        load_embedder("sentence-transformers/all-MiniLM-L6-v2", "embedded", models)
    )
    gc.freeze()  # statsmodels collects garbage at every correction: not among the model's objects
    began = time.perf_counter()
    found = simulate_weeks(
        pool, embedder, weeks=options.weeks, looks=options.looks, seed=options.seed
    )
    told = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
    print(told + f"scipy {version('scipy')}, scikit-learn {version('scikit-learn')}")
    share = clopper_pearson_interval(found["alarmed_weeks"], options.weeks)
    print(
        f"{found['alarmed_weeks']} of {options.weeks} quiet weeks had an alarm: {share.value:.1%} "
        f"({share.lower:.1%} to {share.upper:.1%}), at most {WEEKLY_ALPHA:.0%} wanted; "
        f"{options.looks} looks a week, {time.perf_counter() - began:.0f} s"
    )
    print(f"alarms by measure: {found['by_measure']}")
    print(f"judged in the last look: {found['judged_count']} of {found['measured_count']}")
    if options.json:
        print(json.dumps(found))


def serve_pool(
    folder: Path, *, asks_per_day: int = 100, lapse_ratio: float = LAPSE_RATIO
) -> pl.DataFrame:
    """Return two quiet weeks of the real server, laid over one another."""
    weeks = [
        serve_week(
            folder / str(seed), START, seed=seed, asks_per_day=asks_per_day,
            faults=Faults(student_lapse_ratio=lapse_ratio),
        )
        for seed in (11, 12)
    ]  # fmt: skip
    return pl.concat(weeks)


def simulate_weeks(
    pool: pl.DataFrame, embedder: Embedder, *, weeks: int, looks: int, seed: int
) -> dict[str, object]:
    """Return how many weeks had any alarm at any of their looks, and what alarmed."""
    by_measure: Counter[str] = Counter()
    alarmed, judged, measured = 0, 0, 0
    for number in range(weeks):
        chance = np.random.default_rng([seed, number])
        records = pl.concat([draw_week(pool, chance, START + n * WEEK) for n in range(3)])
        names: set[str] = set()
        for night in range(7 - looks, 7):
            end = START + 2 * WEEK + (night + 1) * DAY
            rows = judge_measurements(measure_night(records, end, embedder, chance))
            names |= {
                f"{one.row['monitor']}.{one.row['metric']}" for one in rows if one.status == "alarm"
            }
            judged = sum(one.status != "inconclusive" for one in rows)
            measured = len(rows)
        by_measure.update(names)
        alarmed += bool(names)
    return {
        "weeks": weeks,
        "looks": looks,
        "alarmed_weeks": alarmed,
        "by_measure": dict(by_measure),
        "judged_count": judged,
        "measured_count": measured,
    }


def draw_week(pool: pl.DataFrame, chance: np.random.Generator, start: datetime) -> pl.DataFrame:
    """Return a week of conversations drawn from the pool, as many as chance has it.

    Each question was answered by both models; the arm that is drawn now says which answer was
    served, and the other one is its shadow's.
    """
    asked = pl.coalesce("parent_trace_id", "trace_id")
    whole = pool.with_columns(asked.alias("pair")).filter(pl.len().over("pair") == 2)
    conversations = (
        whole.filter(pl.col("parent_trace_id").is_null())["conversation"].unique().sort()
    )
    # A shadow's conversation is its own question's: both have one id.
    drawn = conversations.gather(
        chance.integers(len(conversations), size=chance.poisson(len(conversations) / 2)).tolist()
    )
    fresh = [f"{start:%Y%m%d}-{number}-{chance.integers(2**62)}" for number in range(len(drawn))]
    arms = [
        "student" if draw_conversation(salt="s", conversation_id=c) < CANARY_RATIO else "teacher"
        for c in fresh
    ]
    plan = pl.DataFrame({"conversation": drawn, "fresh": fresh, "arm": arms})
    rows = plan.join(whole, on="conversation")
    is_served = pl.col("served_by") == pl.col("arm")
    pair = pl.concat_str("fresh", "pair", separator="/")
    return rows.with_columns(
        pl.when(is_served).then(pair).otherwise(pair + "/shadow").alias("trace_id"),
        pl.when(is_served).then(None).otherwise(pair).alias("parent_trace_id"),
        pl.when(is_served).then(pl.lit("rule")).otherwise(pl.lit("shadow")).alias("selection_mode"),
        pl.col("arm").alias("canary_arm"),
        pl.col("fresh").alias("conversation"),
        pl.col("asked_at") + (start - START),
    ).select(pool.columns)


def measure_night(
    records: pl.DataFrame, end: datetime, embedder: Embedder, chance: np.random.Generator
) -> pl.DataFrame:
    """Return what every monitor that reads traffic measures at one night."""
    traffic = split_traffic(records, start=end - WEEK, end=end, before_start=end - 5 * WEEK)
    plan = MonitoringPlan()
    agreement = measure_agreement(traffic, plan)
    spans = [_draw_training(chance, traffic) for _ in range(2)]
    found = {
        "shadow_agreement": agreement,
        "traffic_drift": measure_drift(traffic, gather_drift(traffic), embedder),
        "served_by_slices": measure_slices(traffic),
        "assignment_audit": measure_assignment(traffic),
        "cold_start_report": measure_cold_starts(traffic, plan),
        "sample_audit": measure_samples(traffic, _draw_samples(traffic, chance)),
        "pool_separation": measure_separation(traffic, spans, plan),
        "embedder_probe": [measure_fingerprints(traffic, {}, FINGERPRINTS)],
    }
    frames = {
        name: tabulate_measurements(name, rows, start=traffic.start, end=traffic.end)
        for name, rows in found.items()
    }
    clusters = cluster_pairs(
        pair_questions(traffic.asks, traffic.shadows),
        embedder,
        Registry(vectors=np.zeros((0, embedder.dimension), dtype=np.float32), behaviours=()),
        agreement_ratio=plan.minimum_agreement_ratio,
    )
    table = tabulate_clusters(clusters, start=traffic.start, end=traffic.end)
    verdict = judge_clusters(table, frames["shadow_agreement"], plan)
    frames["disagreement_clusters"] = tabulate_measurements(
        "disagreement_clusters", [verdict], start=traffic.start, end=traffic.end
    )
    return pl.concat(frames.values())


def _draw_samples(traffic: Traffic, chance: np.random.Generator) -> dict[str, pl.DataFrame]:
    """Return what is audited: a stratified sample, one drawn as a shadow's is, and curation's."""
    lots = chance.random(traffic.asks.height) < 0.6
    queue = find_candidates(traffic.asks.lazy(), tables.CURATION_DECISIONS.to_frame())
    decided = queue.head(queue.height // 2)["trace_id"]
    return {
        "shadow_pairs": traffic.asks.filter(pl.Series(lots)),
        CURATED: take_curated(traffic.asks, decided),
        "stratified": draw_stratified(traffic.asks, 400),
    }


def _draw_training(chance: np.random.Generator, traffic: Traffic) -> TrainingSpan:
    start = traffic.start + float(chance.uniform(0, 6.5)) * DAY
    return TrainingSpan(adapter="quiet", start=start, end=start + DAY / 2)


if __name__ == "__main__":
    main()
