"""The asset of the phase `dreamer`: questions written by night around what the student cannot do.

Traces say where the student is weak, or else the validation split; teachers write around
hand-written seeds, and a journal that is an input of its own carries the result to the guard:
nothing that trains is downstream of a trace. Belongs here: declarations. Does not belong here:
weakness, the loop, the hours of the night.
"""

from datetime import UTC, datetime, timedelta

import dagster as dg
import polars as pl

from assets import keys
from assets.paraphrases.dreaming import (
    DreamPlan,
    Dreams,
    dream_questions,
    open_dreams,
)
from assets.paraphrases.rewriting import REWRITE_PROMPT_VERSION
from assets.paraphrases.weakness import (
    choose_evidence,
    leave_out_dreamed,
    rank_weak_spots,
    select_asks,
)
from assets.spending import describe_spending, read_spending
from assets.traces.hours import find_folder, list_hours, read_hour, scan_hours
from serving.aio import run_blocking
from serving.home import Home
from serving.models.protocols import ChatModel, Embedder, Progress


@dg.observable_source_asset(key=keys.DREAM_JOURNAL)
def dream_journal(dreams: dg.ResourceParam[Dreams]) -> dg.DataVersion:
    """What was written by night; the version is the hash of the journal's bytes, or none."""
    return dg.DataVersion(dreams.fingerprint())


@dg.asset(
    key=keys.DREAMED_QUESTIONS,
    ins={
        "seed_questions": dg.AssetIn(key=keys.SEED_QUESTIONS),
        "seed_clusters": dg.AssetIn(key=keys.SEED_CLUSTERS),
        "paraphrases": dg.AssetIn(key=keys.PARAPHRASES),
    },
    deps=[keys.HOURLY_RECORDS],
    kinds={"openai", "polars"},
    code_version=f"3+prompt.{REWRITE_PROMPT_VERSION}",
    pool="teacher",
)
def dreamed_questions(
    seed_questions: pl.DataFrame,
    seed_clusters: pl.DataFrame,
    paraphrases: pl.DataFrame,
    home: dg.ResourceParam[Home],
    dreamer: dg.ResourceParam[ChatModel],
    embedder: dg.ResourceParam[Embedder],
    live_embedder: dg.ResourceParam[Embedder],
    dream_plan: dg.ResourceParam[DreamPlan],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult[pl.DataFrame]:
    """All questions ever written by night; this night's are aimed at the weakest clusters.

    `asked_in_vain` names seeds whose rewordings were all known: the next night draws others.
    """
    now, journal = datetime.now(UTC), open_dreams(home)
    since = now - timedelta(days=dream_plan.window_days)
    paths = [path for path in list_hours(find_folder(home)) if read_hour(path) >= since]
    asks, evidence = choose_evidence(select_asks(scan_hours(paths)), dream_plan.read_misses)
    spots = rank_weak_spots(
        asks,
        seed_questions.join(seed_clusters, on="question_id"),
        evidence=evidence,
        embed_asks=live_embedder.embed,
        embed_seeds=embedder.embed,
        is_taught=dream_plan.is_taught,
    )
    if evidence == "validation":
        spots = leave_out_dreamed(spots, journal.read(), since=dream_plan.date_misses())
    before = read_spending(dreamer)
    known = [seed_questions, paraphrases]
    night = run_blocking(
        dream_questions(
            spots,
            known=[row for frame in known for row in frame.select("question_id", "text").rows()],
            dreams=journal.read(),
            keep=journal.append,
            teacher=dreamer,
            embed=embedder.embed,
            plan=dream_plan,
            now=now,
            progress=progress,
        )
    )
    return dg.MaterializeResult(
        value=journal.read(),
        metadata={
            "evidence": evidence,
            "asked_count": asks.height,
            "weak_count": int(asks["is_weak"].sum()),
            "weak_spot_count": len(spots),
            "written_around": night.spots,
            "asked_in_vain": night.barren,
            "written_count": night.written_count,
            "stopped_by": night.stopped_by,
            **describe_spending(dreamer, since=before),
        },
    )
