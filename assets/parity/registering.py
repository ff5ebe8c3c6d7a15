"""Registered predictions: what was expected of a student, written down before its first answers.

A prediction stands in a file that anybody can edit after the run. So the run that first asks a
student appends the predictions of that day to a ledger, and a later edit shows. That run alone:
what is said of a student that has answered is no prediction. Belongs here: the ledger, and a
prediction then beside the same one now. Does not belong here: measuring (`experiments`).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from assets.parity.experiments import Experiment
from serving.errors import InvalidInputError
from serving.hashing import content_hash
from serving.home import Home

Standing = Literal["unchanged", "changed", "added", "withdrawn", "none", "retired"]
UNREGISTERED: frozenset[Standing] = frozenset({"added", "none"})
"""Standings of what nobody had predicted when the student was first asked."""


@dataclass(frozen=True, kw_only=True)
class Registration:
    """One experiment's predictions as they stood when this student was first asked.

    `experiment` is None where nothing was predicted: the student counts as asked all the same.
    """

    experiment: str | None
    adapter_sha256: str
    predicted: Mapping[str, float]
    prediction_hash: str
    registered_at: str
    run_id: str


@dataclass(frozen=True, kw_only=True)
class StandingPrediction:
    """A prediction of one metric: as registered (else as declared), as declared today, and both.

    `predicted` is what is judged, unless it was said of another comparison (`is_of_another`).
    """

    metric: str
    predicted: float
    declared: float | None
    standing: Standing
    is_of_another: bool = False


def find_predictions(home: Home) -> Path:
    """Return the ledger: beside that of the golden set's readers."""
    return home.ledger.with_name("predictions.jsonl")


def register_predictions(
    ledger: Path,
    experiments: Iterable[Experiment],
    *,
    adapter_sha256: str,
    run_id: str,
    was_asked: bool = False,
) -> list[str]:
    """Append what is predicted today, and return the experiments registered.

    Once per student, before it is first asked: later nothing is registered. All experiments are, as
    two recipes may turn out to make the same student.

    Args:
        ledger: the file.
        experiments: as they are declared.
        adapter_sha256: the student that is about to be asked.
        run_id: of the run that asks it.
        was_asked: whether answers of it lie in the home already, whatever the ledger says.
    """
    if any(adapter == adapter_sha256 for _, adapter in read_registrations(ledger)):
        return []
    predicting = [] if was_asked else list(experiments)
    lines: list[Experiment | None] = [*predicting] or [None]
    made = [
        Registration(
            experiment=experiment.name if experiment else None,
            adapter_sha256=adapter_sha256,
            predicted=dict(experiment.predicted) if experiment else {},
            prediction_hash=hash_prediction(experiment) if experiment else "",
            registered_at=datetime.now(UTC).isoformat(timespec="seconds"),
            run_id=run_id,
        )
        for experiment in lines
    ]
    ledger.parent.mkdir(parents=True, exist_ok=True)
    with ledger.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(asdict(one)) + "\n" for one in made)
    return [one.name for one in predicting]


def hash_prediction(experiment: Experiment, predicted: Mapping[str, float] | None = None) -> str:
    """Return the identity of all that an experiment predicts, and of what.

    Args:
        experiment: says what is compared.
        predicted: of it, where that is not what the experiment declares.
    """
    compared = [experiment.recipe, experiment.arm, experiment.against_recipe,
                experiment.against_arm]  # fmt: skip
    said = experiment.predicted if predicted is None else predicted
    return content_hash(compared, sorted(said.items()))


def read_registrations(ledger: Path) -> dict[tuple[str | None, str], Registration]:
    """Return the first registration of each (experiment, adapter).

    Raises:
        InvalidInputError: a line is none; a ledger that cannot be read proves nothing.
    """
    found: dict[tuple[str | None, str], Registration] = {}
    lines = ledger.read_text(encoding="utf-8").splitlines() if ledger.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            one = Registration(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise InvalidInputError(
                f"reading the registered predictions of {ledger}",
                expected="a JSON object with the fields of a registration on every line",
                found=f"{type(error).__name__} on line {number}",
                next_step="restore the file from a backup, or move it away: without it no "
                "prediction counts as made before its run",
            ) from error
        found.setdefault((one.experiment, one.adapter_sha256), one)
    return found


def compare_with_registration(
    experiment: Experiment, registration: Registration | None
) -> list[StandingPrediction]:
    """Return every metric predicted then or now, each judged by what was said then.

    What was said of another comparison predicts nothing of this one, whatever its numbers.
    """
    declared = experiment.predicted
    if registration is None:
        return [
            StandingPrediction(metric=metric, predicted=value, declared=value, standing="none")
            for metric, value in declared.items()
        ]
    then = registration.predicted
    is_of_another = registration.prediction_hash != hash_prediction(experiment, then)
    return [
        StandingPrediction(
            metric=metric,
            predicted=then.get(metric, declared.get(metric, 0.0)),
            declared=declared.get(metric),
            standing="changed"
            if is_of_another
            else _compare(then.get(metric), declared.get(metric)),
            is_of_another=is_of_another,
        )
        for metric in dict.fromkeys([*then, *declared])
    ]


def _compare(then: float | None, now: float | None) -> Standing:
    if then is None:
        return "added"
    if now is None:
        return "withdrawn"
    return "unchanged" if then == now else "changed"
