"""The rest of the report's bench: router, money, reliability, kinds of question, neighbours.

Imported by `parity.py`. Held-out answers, wordings and training questions are made up in the sizes
of a run; what is timed over them is the product's own. Belongs here: those inputs, and the steps
from them to the report's sections. Does not belong here: arms and grades (`parity.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from assets import tables
from assets.parity.costs import measure_costs
from assets.parity.curve_points import place_points
from assets.parity.economics import EconomicsTerms, OneOffCosts, find_range, tabulate_economics
from assets.parity.economics_chart import tabulate_sensitivity
from assets.parity.flips import measure_flips
from assets.parity.operating_points import choose_operating_points
from assets.parity.prices import StatedPrice
from assets.parity.report_confidence import describe_reliability
from assets.parity.report_sections import ReportSection
from assets.parity.report_worth import (
    describe_economics,
    describe_router,
    describe_suitability,
)
from assets.parity.router_curve import summarise_curve, tabulate_curve
from assets.parity.suitability import gather_asked, measure_suitability
from assets.students.calibration import Engine, calibrate, read_calibrator
from serving.models.protocols import Vectors
from serving.pipeline.router import RouterPolicy
from tests.assets.students.held_out_rows import SHA, draw_answers, make_answers

HELD_OUT = 60  # validation questions, and as many to calibrate on: the defaults of a config
QUESTIONS = 900  # kept training questions, of which every third is a seed
WORDINGS = 3  # of a seed
TRAINED = 200
TERMS = EconomicsTerms(gpu_usd_per_hour=0.1, training_usd_per_hour=0.1)


@dataclass(frozen=True, kw_only=True)
class MadeWorth:
    """What a run would have stored before its report.

    `calibration` is the row that was fitted on `held_out`.
    """

    held_out: pl.DataFrame
    calibration: dict[str, Any]
    wordings: pl.DataFrame
    guarded: pl.DataFrame

    @property
    def trained_question_ids(self) -> frozenset[str]:
        """The questions that the student learned from."""
        return frozenset(self.guarded["question_id"].head(TRAINED))


def make_worth(cases: pl.DataFrame, draw: np.random.Generator) -> MadeWorth:
    """Return the inputs, fitted and drawn before the clock starts."""
    rows = [
        row | {"prompt_tokens_estimate": 600, "prompt_tokens": 600, "completion_tokens": 40,
               "retrieved": [_hit(number, row["retrieval_score"])]}
        for seed, split in enumerate(("validation", "calibration"))
        for number, row in enumerate(draw_answers(HELD_OUT, split=split, seed=seed, per_seed=2))
    ]  # fmt: skip
    held_out = make_answers(rows)
    fitted = calibrate(held_out, Engine(adapter_sha256=SHA, engine="local", dtype="float32"))
    names = cases["case_id"].to_list()
    questions = [
        {"question_id": f"q{n}", "seed_id": f"q{n - n % WORDINGS}", "text": _ask(n),
         "nearest_case_id": names[n % len(names)], "nearest_cosine": float(draw.beta(8, 6)),
         "verdict": "kept"}
        for n in range(QUESTIONS)
    ]  # fmt: skip
    wordings = [
        {"question_id": row["question_id"], "seed_id": row["seed_id"], "question": row["text"],
         "retrieved": [_hit(n, float(draw.random()))], "citations": [_hit(n, 0.0)["chunk_id"]],
         "messages": [{"role": "user", "content": "A source. " * 200}], "cost_usd": 0.0024}
        for n, row in enumerate(questions)
    ]  # fmt: skip
    return MadeWorth(
        held_out=held_out,
        calibration={"recipe": "made-up"} | fitted,
        wordings=pl.DataFrame(wordings, schema=tables.TEACHER_ANSWERS),
        guarded=pl.DataFrame(questions, schema=tables.GUARDED_QUESTIONS),
    )


def _ask(number: int) -> str:
    return f"How is setting {number} of page {number % 30} written?"


def _hit(number: int, score: float) -> dict[str, Any]:
    chunk = f"docs:reference/page-{number % 30}/{number % 150}"
    return {"chunk_id": chunk, "content_hash": chunk, "score": score}


class DrawnEmbedder:
    """Vectors of a real embedder's size, drawn by chance: embedding itself is bench/embedding.py.

    What is timed here is what is done with them.
    """

    fingerprint, dimension, maximum_tokens = "drawn", 384, 256

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return unit vectors."""
        drawn = np.random.default_rng(0).normal(size=(len(texts), self.dimension))
        vectors: Vectors = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return word counts."""
        return [len(text.split()) for text in texts]


def measure_worth(
    answers: pl.DataFrame, made: MadeWorth, note: Callable[[str], None]
) -> tuple[pl.DataFrame, tuple[ReportSection, ...]]:
    """Return the operating points and the sections on worth; `note` is called after each step."""
    policy, calibrator = RouterPolicy(), read_calibrator(made.calibration)
    chosen = choose_operating_points(made.held_out, calibrator, policy=policy)
    points = pl.DataFrame(
        [row | {"adapter_sha256": SHA} for row in chosen], schema=tables.OPERATING_POINTS
    )
    student = measure_costs(answers, "student")
    curve = tabulate_curve(
        made.held_out, calibrator, policy=policy,
        teacher_usd=student.teacher_usd, student_usd=student.student_usd,
    )  # fmt: skip
    figures = [
        *summarise_curve(made.held_out, calibrator, policy=policy),
        measure_flips(made.wordings, policy, count_tokens=len),
    ]
    note("route")
    routed = [arm for arm in answers["arm"].unique().sort() if arm.startswith("routed")]
    costs = {arm: measure_costs(answers, arm) for arm in routed}
    one_off = OneOffCosts(bought_usd=25.0, training_usd=0.01, setup_usd=0.0)
    money = tabulate_economics((c, find_range(c, one_off, TERMS)) for c in costs.values())
    savings = tabulate_sensitivity(costs["routed"], one_off, TERMS)
    note("price")
    seeds = made.wordings.filter(pl.col("question_id") == pl.col("seed_id"))
    asked = gather_asked(
        seeds,
        policy,
        cost="cost_usd",
        price=StatedPrice(input_usd_per_mtok=3.0, output_usd_per_mtok=15.0),
    )
    labelled = made.wordings.select("question", is_checkable=pl.lit(value=True))
    kinds = measure_suitability(asked, labelled, source="seeds", embedder=DrawnEmbedder())
    note("sort")
    sections = (
        describe_reliability(made.calibration, made.held_out),
        describe_router(
            curve,
            pl.DataFrame(figures, schema=tables.ROUTER_FIGURES),
            place_points(points, made.held_out, calibrator, policy),
        ),
        describe_economics(money, strategy="distilled", reason="made up", sensitivity=savings),
        describe_suitability(kinds),
    )
    note("describe")
    return points, sections
