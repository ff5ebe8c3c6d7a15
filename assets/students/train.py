"""The training process: `python -m assets.students.train --spec spec.json`.

Dagster starts it through Pipes, a person from a shell; the same spec gives the same adapter. It
writes one folder at the end, so stopping it at any time leaves nothing behind. Belongs here: the
spec, the process, progress. Does not belong here: the loop (`training`), the folder (`adapters`).
"""

import argparse
import contextlib
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster_pipes as pipes
import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from assets.students.recipe import TRAINING_VERSION, Recipe
from serving.errors import HashMismatchError, InvalidInputError, UnderstudyError
from serving.files import atomic_folder

if TYPE_CHECKING:
    from assets.students.training import StepReport

logger = logging.getLogger("understudy.train")

REPORTS_PER_RUN = 20


class TrainingSpec(BaseModel):
    """What one training needs. `facts` are what the caller knows for the provenance."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    training_set: Path
    logprobs: Path | None = None
    recipe: Recipe
    base_folder: Path
    base_hash: str
    adapters_folder: Path
    facts: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrainingOutcome:
    """Where the adapter lies. `is_reused` says that an equal training had made it before."""

    adapter: str
    training_key: str
    is_reused: bool
    steps: int = 0
    seconds: float = 0.0
    best_validation_loss: float | None = None


def read_spec(path: Path) -> TrainingSpec:
    """Read a spec file.

    Raises:
        InvalidInputError: it is missing or wrong; every wrong key is named.
    """
    try:
        return TrainingSpec.model_validate_json(path.read_bytes())
    except OSError as error:
        found = str(error)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    raise InvalidInputError(
        f"reading the training spec {path}",
        expected=f"a JSON object with {', '.join(TrainingSpec.model_fields)}",
        found=found,
        next_step="materialize students/student_adapter, which writes the spec",
    )


def run_training(
    spec: TrainingSpec, on_step: Callable[["StepReport"], None] = lambda _report: None
) -> TrainingOutcome:
    """Return the adapter of a spec: found if an equal training made it, else trained and written.

    Raises:
        HashMismatchError: the base folder is not the base that the spec names.
        DivergedError: training failed; the last good weights lie in `adapters/.diverged/`.
        InvalidInputError: missing facts, an empty training set, an unfit model.
    """
    from assets.students import adapters
    from serving.models.causal_lm import hash_base_model

    adapters.check_facts(spec.facts)
    frame = pl.read_parquet(spec.training_set)
    logprobs = _read_logprobs(spec)
    data_hash, logprobs_hash = adapters.hash_training_inputs(frame, logprobs)
    key = adapters.make_training_key(
        spec.recipe, data_hash=data_hash, base_hash=spec.base_hash, logprobs_hash=logprobs_hash
    )
    found = adapters.find_adapter(spec.adapters_folder, spec.recipe.student, key)
    if found is not None:
        return TrainingOutcome(adapter=str(found), training_key=key, is_reused=True)
    base_hash = hash_base_model(spec.base_folder)
    if base_hash != spec.base_hash:
        raise HashMismatchError(
            f"opening the base model {spec.base_folder}",
            expected=spec.base_hash,
            found=base_hash,
            next_step="prepare the base again, or compute base_hash with hash_base_model",
        )
    provenance = spec.facts | {
        "base_hash": base_hash,
        "data_hash": data_hash,
        "logprobs_hash": logprobs_hash,
        "recipe_fingerprint": spec.recipe.fingerprint,
        "training_key": key,
        "training_code_version": TRAINING_VERSION,
    }
    return _train_and_write(spec, frame, logprobs, provenance, on_step)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one training from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m assets.students.train",
        description="Train one adapter. The result is printed as one JSON line.",
        epilog="example: python -m assets.students.train --spec spec.json",
    )
    parser.add_argument("--spec", type=Path, required=True, help="path of the spec (JSON)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Dagster stops a step with it
    try:
        loader = pipes.PipesEnvVarParamsLoader()  # type: ignore[no-untyped-call]
        if loader.is_dagster_pipes_process():
            with pipes.open_dagster_pipes() as context, _open_bar() as draw:
                log = _report_to(context.log.info)  # the event log keeps what a bar forgets

                def on_step(report: "StepReport") -> None:
                    log(report)
                    draw(report)

                outcome = run_training(read_spec(options.spec), on_step)
                context.report_custom_message(asdict(outcome))
        else:
            with _open_bar() as draw:
                tell = draw if sys.stderr.isatty() else _report_to(logger.info)
                outcome = run_training(read_spec(options.spec), tell)
    except UnderstudyError as error:
        logger.error("%s", error)  # noqa: TRY400 - the message says what to do, a traceback does not
        return 1
    except KeyboardInterrupt:
        logger.warning("stopped: nothing was written")
        return 130
    sys.stdout.write(json.dumps(asdict(outcome)) + "\n")
    return 0


def _read_logprobs(spec: TrainingSpec) -> pl.DataFrame | None:
    if spec.logprobs is None or spec.recipe.alpha == 1:
        return None  # a hard-only recipe does not depend on them
    return pl.read_parquet(spec.logprobs)


def _train_and_write(
    spec: TrainingSpec,
    frame: pl.DataFrame,
    logprobs: pl.DataFrame | None,
    provenance: dict[str, Any],
    on_step: Callable[["StepReport"], None],
) -> TrainingOutcome:
    from assets.students.adapters import write_adapter
    from assets.students.training import DivergedError, train_adapter
    from serving.models.causal_lm import load_causal_lm, load_tokenizer

    base = load_causal_lm(spec.base_folder, spec.recipe.dtype)
    tokenizer = load_tokenizer(spec.base_folder)
    try:
        trained = train_adapter(
            base, frame, logprobs, spec.recipe, base_hash=spec.base_hash, on_step=on_step
        )
    except DivergedError as error:
        _keep_last_good(spec, error, provenance["training_key"])
        raise
    folder = write_adapter(
        spec.adapters_folder, trained, spec.recipe, tokenizer, provenance=provenance
    )
    return TrainingOutcome(
        adapter=str(folder),
        training_key=provenance["training_key"],
        is_reused=False,
        steps=trained.steps,
        seconds=trained.seconds,
        best_validation_loss=trained.best_validation_loss,
    )


def _keep_last_good(spec: TrainingSpec, error: Any, training_key: str) -> None:
    """Keep the weights of a diverged run for whoever investigates; no student loads them."""
    from safetensors.torch import save_file

    target = spec.adapters_folder / ".diverged" / f"{spec.recipe.student}-{training_key[:12]}"
    with atomic_folder(target) as staging:
        save_file(error.last_good, staging / "last_good.safetensors")
        (staging / "error.txt").write_text(str(error), encoding="utf-8")


def _report_to(log: Callable[[str], Any]) -> Callable[["StepReport"], None]:
    """Return a callback that logs about every 5 % of the steps, and every validation."""

    def on_step(report: "StepReport") -> None:
        every = max(1, report.total_steps // REPORTS_PER_RUN)
        is_last = report.step == report.total_steps
        if report.step % every == 0 or is_last or report.validation_loss is not None:
            log(report.to_line())

    return on_step


@contextlib.contextmanager
def _open_bar() -> Iterator[Callable[["StepReport"], None]]:
    """Yield a callback that moves a progress bar on a terminal, and does nothing elsewhere.

    The bar is first drawn with the first step: until then the process that started this one may
    still be writing to the same terminal.
    """
    if not sys.stderr.isatty():
        yield lambda _report: None
        return
    from rich.console import Console
    from rich.progress import Progress

    progress = Progress(console=Console(stderr=True), transient=True)
    task = progress.add_task("training", total=None)

    def draw(report: "StepReport") -> None:
        progress.start()  # does nothing once it is started
        progress.update(
            task, completed=report.step, total=report.total_steps, description=report.to_line()
        )

    try:
        yield draw
    finally:
        progress.stop()


if __name__ == "__main__":
    sys.exit(main())
