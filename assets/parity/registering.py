"""Registered predictions: what was expected of a student, written down before its first answers.

A prediction stands in a file that anybody can edit after the run. So the run that first asks a
student appends what is predicted of it to a ledger, and a later edit shows. Belongs here: the
ledger, and a prediction then beside the same one now. Does not belong here: measuring
(`experiments`).
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

Standing = Literal["unchanged", "changed", "added", "withdrawn", "none"]


@dataclass(frozen=True, kw_only=True)
class Registration:
    """One experiment's predictions as they stood when this student was first asked."""

    experiment: str
    adapter_sha256: str
    predicted: Mapping[str, float]
    prediction_hash: str
    registered_at: str
    run_id: str


@dataclass(frozen=True, kw_only=True)
class StandingPrediction:
    """A prediction of one metric: as registered (else as declared), as declared today, and both.

    `predicted` is what is judged.
    """

    metric: str
    predicted: float
    declared: float | None
    standing: Standing


def find_predictions(home: Home) -> Path:
    """Return the ledger: beside that of the golden set's readers."""
    return home.ledger.with_name("predictions.jsonl")


def register_predictions(
    ledger: Path,
    experiments: Iterable[Experiment],
    *,
    recipe: str,
    adapter_sha256: str,
    run_id: str,
) -> list[str]:
    """Append what is predicted of this recipe's student, and return the experiments registered.

    Once per student: what is predicted of answers that exist already is no prediction.
    """
    known = read_registrations(ledger)
    made = [
        Registration(
            experiment=experiment.name,
            adapter_sha256=adapter_sha256,
            predicted=dict(experiment.predicted),
            prediction_hash=hash_prediction(experiment),
            registered_at=datetime.now(UTC).isoformat(timespec="seconds"),
            run_id=run_id,
        )
        for experiment in experiments
        if experiment.recipe == recipe and (experiment.name, adapter_sha256) not in known
    ]
    if made:
        ledger.parent.mkdir(parents=True, exist_ok=True)
        with ledger.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(asdict(one)) + "\n" for one in made)
    return [one.experiment for one in made]


def hash_prediction(experiment: Experiment) -> str:
    """Return the identity of all that an experiment predicts, and of what."""
    compared = [experiment.recipe, experiment.arm, experiment.against_recipe,
                experiment.against_arm]  # fmt: skip
    return content_hash(compared, sorted(experiment.predicted.items()))


def read_registrations(ledger: Path) -> dict[tuple[str, str], Registration]:
    """Return the first registration of each (experiment, adapter).

    Raises:
        InvalidInputError: a line is none; a ledger that cannot be read proves nothing.
    """
    found: dict[tuple[str, str], Registration] = {}
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
    """Return every metric predicted then or now, each judged by what was said then."""
    declared = experiment.predicted
    if registration is None:
        return [
            StandingPrediction(metric=metric, predicted=value, declared=value, standing="none")
            for metric, value in declared.items()
        ]
    then = registration.predicted
    return [
        StandingPrediction(
            metric=metric,
            predicted=then.get(metric, declared.get(metric, 0.0)),
            declared=declared.get(metric),
            standing=_compare(then.get(metric), declared.get(metric)),
        )
        for metric in dict.fromkeys([*then, *declared])
    ]


def _compare(then: float | None, now: float | None) -> Standing:
    if then is None:
        return "added"
    if now is None:
        return "withdrawn"
    return "unchanged" if then == now else "changed"
