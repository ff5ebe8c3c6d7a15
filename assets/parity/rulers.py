"""The judge as a ruler: is it good, is it still the one scores were made with, is it still alive?

Everything here is read from the anchors, whose quality is known by construction, and never from a
model under test: a score that moves there is the judge's movement. Scores of two epochs are never
compared with each other; each is compared with the labels. Belongs here: those statistics and the
three verdicts. Does not belong here: building anchors (`assets/eval_set/anchors`), asking.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from assets.parity.dual_judges import DualWindow, compare_rulers
from assets.parity.standing import RULER, choose_ruler, keep_standing, order_rulers
from assets.statistics import Interval, clustered_bootstrap, mcnemar_exact

GOOD_SCORE = 4  # at or above: the judge calls it good
LEAST_ANCHORS = 400
LEAST_KAPPA = 0.70
FLIP_RATIO = 0.02  # of ratings that may change between two waves by noise
ALARM_EVIDENCE = 20.0  # at or above: by Ville's inequality, by chance in 5 % of all streams at most
LEAST_PAIRED_ANCHORS = 300
CHANGED_P_LIMIT = 0.01
MOVEMENT_MARGIN = 0.03
ALPHA = 0.05
LEAST_ALPHA = 0.667
ALPHA_RISE = 0.05
LEAST_SENTINEL_AUC = 0.90
ENTROPY_DROP_RATIO = 0.20


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check of the judge says: whether it holds, what was found, and the numbers.

    `is_conclusive` is false where there is too little to say anything, which is no pass.
    """

    holds: bool
    is_conclusive: bool
    reasons: tuple[str, ...]
    numbers: dict[str, float]


def judge_ruler(ratings: pl.DataFrame) -> Finding:
    """Is the judge good enough against the labels, and the one that the epoch began with?

    Args:
        ratings: rows of judge_anchor_run, all waves and rulers.
    """
    mine = _mark(ratings.filter(rater_kind="judge"))
    if mine.is_empty():
        return _open("no judge has rated the anchors yet")
    now = choose_ruler(mine)
    epoch = now["judge_epoch"][0]
    kappa = measure_kappa(now)
    evidence, flips, compared = measure_flips(now)
    numbers = {
        "anchor_count": float(now["anchor_id"].n_unique()),
        "kappa": kappa.value,
        "kappa_lower": kappa.lower,
        **{f"kappa_{axis}": measure_kappa(rows).value for axis, rows in _split_axes(now)},
        "flip_count": float(flips),
        "flips_compared": float(compared),
        "flip_evidence": evidence,
    }
    reasons = []
    names = mine.filter(judge_epoch=epoch).select("rater_id", "rubric_version").unique()
    if names.height > 1:
        reasons.append(f"epoch {epoch} has scores of {names.height} judges or rubrics")
    is_whole = numbers["anchor_count"] >= LEAST_ANCHORS
    if is_whole and kappa.lower < LEAST_KAPPA:
        reasons.append(f"kappa's lower bound {kappa.lower:.2f} is under {LEAST_KAPPA}")
    if evidence >= ALARM_EVIDENCE:
        reasons.append(f"{flips} of {compared} ratings flipped: evidence {evidence:.0f} >= 20")
    if window := find_dual_window(mine):
        numbers |= window.to_numbers()
    changed, p = compare_with_last_ruler(mine)
    if p is not None:
        numbers |= {"changed_count": float(changed), "changed_p": p}
        if p < CHANGED_P_LIMIT:
            reasons.append(
                f"the judge before is right on other anchors (McNemar p = {p:.2g}): a new baseline"
            )
    short = () if is_whole else (f"{numbers['anchor_count']:.0f} of {LEAST_ANCHORS} anchors rated",)
    return Finding(
        holds=not reasons and is_whole,
        is_conclusive=is_whole or bool(reasons),
        reasons=(*reasons, *short),
        numbers=numbers,
    )


def measure_kappa(marked: pl.DataFrame) -> Interval:
    """Return Cohen's kappa of the first rating of each anchor and axis with its label.

    The interval is statsmodels'; a judge that always says the same has a kappa of 0.
    """
    from statsmodels.stats.inter_rater import cohens_kappa

    first = _take_first(marked)
    table = np.zeros((2, 2))
    for is_good, called_good in first.select("is_good", "called_good").iter_rows():
        table[int(is_good), int(called_good)] += 1
    if not table.sum(axis=0).all() or not table.sum(axis=1).all():
        return Interval(value=0.0, lower=0.0, upper=0.0, n=first.height)
    found = cohens_kappa(table)
    return Interval(
        value=float(found.kappa),
        lower=float(found.kappa_low),
        upper=float(found.kappa_upp),
        n=first.height,
    )


def measure_flips(marked: pl.DataFrame) -> tuple[float, int, int]:
    """Return (evidence, flips, ratings compared) of the later waves against the first rating.

    The evidence is an e-process: it may be looked at after every wave, and exceeds 20 in at most
    5 % of the streams in which no more than 2 % of the ratings flip. An anchor counts once: a judge
    that always answers alike would repeat one flip for ever.
    """
    first = _take_first(marked).select("anchor_id", "axis", "called_good", "wave")
    again = marked.join(first, on=("anchor_id", "axis"), suffix="_first").filter(
        pl.col("wave") > pl.col("wave_first")
    )
    latest = again.sort("wave").unique(("anchor_id", "axis"), keep="last")
    flips = latest.filter(pl.col("called_good") != pl.col("called_good_first")).height
    return weigh_flips(flips, latest.height), flips, latest.height


def weigh_flips(flips: int, compared: int, *, allowed: float = FLIP_RATIO) -> float:
    """Return the likelihood of the flips under any higher ratio, over that under `allowed`.

    Higher ratios are weighed evenly (a mixture martingale; Ville 1939, Robbins 1970).
    """
    from scipy.special import betaincc, betaln

    kept = compared - flips
    with np.errstate(divide="ignore"):  # so few flips that no higher ratio is likely at all
        area = betaln(flips + 1, kept + 1) + np.log(betaincc(flips + 1, kept + 1, allowed))
    null = flips * np.log(allowed) + kept * np.log1p(-allowed)
    return float(np.exp(area - np.log1p(-allowed) - null))


def compare_with_last_ruler(marked: pl.DataFrame) -> tuple[int, float | None]:
    """Return how many anchors only one of the last two rulers is right on, and McNemar's p.

    Each is held against the labels, anchor by anchor; their scores are not compared. p is None with
    one ruler, or with fewer than 300 anchors that both rated.
    """
    pair = _take_last_rulers(marked)
    if pair is None:
        return 0, None
    old, new = (
        ratings.group_by("anchor_id").agg(
            (pl.col("called_good") == pl.col("is_good")).all().alias("is_right")
        )
        for ratings in pair
    )
    both = old.join(new, on="anchor_id", suffix="_new")
    gained = both.filter(~pl.col("is_right"), "is_right_new").height
    lost = both.filter("is_right", ~pl.col("is_right_new")).height
    if both.height < LEAST_PAIRED_ANCHORS:
        return gained + lost, None
    return gained + lost, mcnemar_exact(gained, lost)


def find_dual_window(marked: pl.DataFrame) -> DualWindow | None:
    """Return how the last two rulers agree on what both rated; None with one ruler."""
    pair = _take_last_rulers(marked)
    return compare_rulers(*pair) if pair else None


def _take_last_rulers(marked: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame] | None:
    """Return the first ratings of the ruler before and of the last one; None with one ruler."""
    if order_rulers(marked).height < 2:
        return None
    old, new = (_take_first(choose_ruler(marked, place)) for place in (-2, -1))
    return old, new


@dataclass(frozen=True, kw_only=True)
class Movement:
    """How far one axis moved for one rater, as a share of the scale.

    `rater` is the kind, with the name of the person where several of a kind stand.
    """

    rater: str
    axis: str
    change: Interval
    is_off_zero: bool


def measure_movements(ratings: pl.DataFrame) -> list[Movement]:
    """Return how each axis moved between the first and the latest rating, by rater that stands.

    Only anchors rated twice by one ruler count, so the anchors are the same on both sides. The
    intervals are bootstraps over cores. Off zero is by Holm: the interval of the axis with the
    r-th smallest p is taken at alpha / (number of axes - r + 1), and stops at the first that holds
    zero.
    """
    known = keep_standing(ratings.filter(pl.col("score").is_not_null()))
    crowd = known.group_by("rater_kind").agg(pl.struct(RULER).n_unique().alias("count"))
    several = set(crowd.filter(pl.col("count") > 1)["rater_kind"])
    pairs = []
    for (kind, rater_id, _, _, axis), rows in known.group_by(
        "rater_kind", *RULER, "axis", maintain_order=True
    ):
        ordered = rows.sort("wave")
        first = ordered.unique("anchor_id", keep="first", maintain_order=True)
        last = ordered.unique("anchor_id", keep="last", maintain_order=True)
        both = first.join(last, on="anchor_id", suffix="_last").filter(
            pl.col("wave_last") > pl.col("wave")
        )
        if both.height:
            change = ((both["score_last"] - both["score"]) / 4).to_list()
            rater = f"{kind} {rater_id}" if kind in several else str(kind)
            pairs.append((rater, str(axis), change, both["core_id"].to_list()))
    return _step_down(pairs)


def _step_down(pairs: Sequence[tuple[str, str, list[float], list[str]]]) -> list[Movement]:
    order = sorted(pairs, key=lambda pair: _order_by_t(pair[2]))
    movements, is_open = [], True
    for rank, (rater, axis, change, cores) in enumerate(order):
        level = ALPHA / (len(order) - rank)
        interval = clustered_bootstrap(change, cores, alpha=level)
        is_open = is_open and (interval.lower > 0 or interval.upper < 0)
        movements.append(Movement(rater=rater, axis=axis, change=interval, is_off_zero=is_open))
    return movements


def _order_by_t(change: Sequence[float]) -> float:
    """Return minus the absolute t of a mean: the order of the p-values, safe without variance."""
    values = np.asarray(change, dtype=np.float64)
    if not values.any():
        return 0.0
    error = float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return -abs(float(values.mean())) / error if error else -np.inf


def find_masked_movement(ratings: pl.DataFrame) -> Finding:
    """Did an axis fall by 3 points or more, or did two move opposite ways under a calm mean?

    An axis fails where its interval is off zero and reaches below the margin. Opposite moves fail
    whatever their size, for they are what a composite hides.
    """
    movements = measure_movements(ratings)
    if not movements:
        return _open("no anchor was rated twice by one ruler yet")
    off = [movement for movement in movements if movement.is_off_zero]
    fallen = [m for m in off if m.change.lower < -MOVEMENT_MARGIN]
    up, down = ([m for m in off if (m.change.value > 0) == is_up] for is_up in (True, False))
    reasons = [f"{_name(m)} fell: {_show(m.change)}" for m in fallen if m.change.value < 0]
    if up and down:
        reasons.append(
            f"opposite moves: {', '.join(map(_name, up))} up and {', '.join(map(_name, down))} down"
        )
    return Finding(
        holds=not reasons,
        is_conclusive=True,
        reasons=tuple(reasons),
        numbers={f"{_name(m)}_change": m.change.value for m in movements},
    )


def _name(movement: Movement) -> str:
    return f"{movement.rater}.{movement.axis}"


def _show(change: Interval) -> str:
    return (
        f"{100 * change.value:+.1f} points of the scale "
        f"({100 * change.lower:+.1f} to {100 * change.upper:+.1f})"
    )


def _mark(ratings: pl.DataFrame) -> pl.DataFrame:
    """Return the conclusive ratings with `called_good`: what the judge says of the axis."""
    return ratings.filter(pl.col("score").is_not_null()).with_columns(
        called_good=pl.col("score") >= GOOD_SCORE
    )


def _split_axes(marked: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    parts = marked.sort("axis").group_by("axis", maintain_order=True)
    return [(str(axis), rows) for (axis,), rows in parts]


def _take_first(marked: pl.DataFrame) -> pl.DataFrame:
    return marked.sort("wave").unique(("anchor_id", "axis"), keep="first", maintain_order=True)


def _open(reason: str) -> Finding:
    return Finding(holds=False, is_conclusive=False, reasons=(reason,), numbers={})
