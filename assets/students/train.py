"""The training process: `python -m assets.students.train --spec spec.json`.

Dagster starts it through Pipes, a person from a shell, torchrun several at once; the same spec
gives the same adapter. It writes one folder at the end, and checkpoints before: killed at any time,
it is started again and goes on. Belongs here: the process. Does not belong here: what starts it
(`spec`), the loop (`training`), the folder (`adapters`), showing progress (`reporting`).
"""

import argparse
import contextlib
import json
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster_pipes as pipes
import polars as pl

from assets.students.checkpoints import CHECKPOINTS, Checkpoints, hold_folder
from assets.students.recipe import TRAINING_VERSION
from assets.students.reporting import (
    forward_warnings,
    open_bar,
    report_failure,
    report_to_file,
    report_to_log,
)
from assets.students.spec import TrainingSpec, read_spec
from serving.errors import HashMismatchError, InvalidInputError, UnderstudyError

if TYPE_CHECKING:
    from assets.students.distributed import Workers
    from assets.students.progress import OnStep, StepReport

logger = logging.getLogger("understudy.train")


@dataclass(frozen=True, kw_only=True)
class TrainingOutcome:
    """Where the adapter lies. `is_reused` says that an equal training had made it before."""

    adapter: str
    training_key: str
    is_reused: bool
    steps: int = 0
    seconds: float = 0.0
    best_validation_loss: float | None = None


def make_command(spec: Path, processes: int) -> list[str]:
    """Return the command that trains a spec, through torchrun where several processes train."""
    module = ["-m", "assets.students.train", "--spec", str(spec)]
    if processes == 1:
        return [sys.executable, *module]
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *run, *module]


def run_training(spec: TrainingSpec, on_step: "OnStep" = lambda _report: None) -> TrainingOutcome:
    """Return the adapter of a spec: found if an equal training made it, else trained and written.

    An interrupted training of the spec is gone on with; one that runs elsewhere is waited for.
    Under torchrun every process calls this, and the first one alone writes and tells.

    Raises:
        HashMismatchError: the base folder is not the base that the spec names.
        DivergedError: training failed; the last good weights lie in `adapters/.diverged/`.
        InvalidInputError: missing facts, an empty training set, an unfit model.
    """
    from assets.students import adapters
    from assets.students.distributed import join_workers

    adapters.check_facts(spec.facts)
    frame = pl.read_parquet(spec.training_set)
    logprobs = _read_logprobs(spec)
    data_hash, logprobs_hash = adapters.hash_training_inputs(frame, logprobs)
    key = adapters.make_training_key(
        spec.recipe,
        data_hash=data_hash,
        base_hash=spec.base_hash,
        logprobs_hash=logprobs_hash,
        teachers=[spec.facts["teacher_ids"], spec.facts["teacher_licenses"]],
        rules=spec.rules,
    )
    provenance = spec.facts | {
        "base_hash": spec.base_hash,
        "data_hash": data_hash,
        "logprobs_hash": logprobs_hash,
        "recipe_fingerprint": spec.recipe.fingerprint,
        "training_key": key,
        "training_code_version": TRAINING_VERSION,
    }
    with join_workers() as workers, _hold(spec, key, workers) as folder:
        found = workers.share(
            lambda: _to_bytes(adapters.find_adapter(spec.adapters_folder, spec.recipe.student, key))
        )
        if found:
            return TrainingOutcome(adapter=found.decode(), training_key=key, is_reused=True)
        _check_base(spec)
        tell = on_step if workers.is_first else lambda _report: None
        return _train_and_write(spec, frame, logprobs, provenance, folder, tell, workers)


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
    loader = pipes.PipesEnvVarParamsLoader()  # type: ignore[no-untyped-call]
    is_told = loader.is_dagster_pipes_process() and _is_first_process()
    try:
        if is_told:
            outcome = _run_under_dagster(read_spec(options.spec))
        else:
            outcome = _run_alone(read_spec(options.spec))
    except (UnderstudyError, OSError) as error:
        known = error if isinstance(error, UnderstudyError) else _explain(error, options.spec)
        logger.error("%s", known)  # noqa: TRY400 - the message says what to do, a traceback does not
        if is_told:
            report_failure(options.spec, known)
        return 1
    except KeyboardInterrupt:
        logger.warning("stopped: no adapter was written; the next start goes on from a checkpoint")
        return 130
    if _is_first_process():
        sys.stdout.write(json.dumps(asdict(outcome)) + "\n")
    return 0


def _explain(error: OSError, spec: Path) -> UnderstudyError:
    return InvalidInputError(
        f"reading and writing the files of the training {spec}",
        expected="files to read, and room and leave to write",
        found=str(error),
        next_step="mend what is named here, such as by freeing space, and start it again: it goes "
        "on from its last checkpoint",
    )


def _run_under_dagster(spec: TrainingSpec) -> TrainingOutcome:
    with (
        pipes.open_dagster_pipes() as context,
        forward_warnings(logger, context.log),
        open_bar() as draw,
    ):
        # the event log keeps what a bar forgets
        shown = [report_to_log(context.log.info), draw]
        shown += [report_to_file(spec.reports)] if spec.reports else []

        def on_step(report: "StepReport") -> None:
            for show in shown:
                show(report)

        outcome = run_training(spec, on_step)
        context.report_custom_message(asdict(outcome))
        return outcome


def _run_alone(spec: TrainingSpec) -> TrainingOutcome:
    with open_bar() as draw:
        return run_training(spec, draw if sys.stderr.isatty() else report_to_log(logger.info))


def _is_first_process() -> bool:
    """Return whether this process reports, before it has joined the others."""
    from torch import distributed

    is_one_of_many = distributed.is_available() and distributed.is_torchelastic_launched()
    return not is_one_of_many or distributed.get_node_local_rank() == 0


def _read_logprobs(spec: TrainingSpec) -> pl.DataFrame | None:
    if spec.logprobs is None or spec.recipe.alpha == 1:
        return None  # a hard-only recipe does not depend on them
    return pl.read_parquet(spec.logprobs)


@contextlib.contextmanager
def _hold(spec: TrainingSpec, key: str, workers: "Workers") -> Iterator[Path]:
    """Yield the folder of this training's checkpoints, the first process alone holding it."""
    folder = spec.adapters_folder / CHECKPOINTS / f"{spec.recipe.student}-{key[:12]}"
    with hold_folder(folder) if workers.is_first else contextlib.nullcontext():
        yield folder


def _check_base(spec: TrainingSpec) -> None:
    from serving.models.causal_lm import hash_base_model

    found = hash_base_model(spec.base_folder)
    if found != spec.base_hash:
        raise HashMismatchError(
            f"opening the base model {spec.base_folder}",
            expected=spec.base_hash,
            found=found,
            next_step="prepare the base again, or compute base_hash with hash_base_model",
        )


def _train_and_write(
    spec: TrainingSpec,
    frame: pl.DataFrame,
    logprobs: pl.DataFrame | None,
    provenance: dict[str, Any],
    folder: Path,
    on_step: "OnStep",
    workers: "Workers",
) -> TrainingOutcome:
    from assets.students.adapters import keep_diverged, write_adapter
    from assets.students.diverging import DivergedError
    from assets.students.prefixes import open_prefix_reader
    from assets.students.soft_rows import find_byte_order
    from assets.students.training import train_adapter
    from serving.models.causal_lm import load_tokenizer

    base, tokenizer = _load_base(spec), load_tokenizer(spec.base_folder)
    vocabulary_size = base.get_output_embeddings().weight.shape[0]
    checkpoints = Checkpoints(
        folder,
        # `dtype: auto` follows the hardware, and so does who reads the prefixes.
        f"{provenance['training_key']} {base.dtype} {spec.prefix_engine}",
        seconds=spec.checkpoint_seconds,
        steps=spec.checkpoint_steps,
    )
    try:
        trained = train_adapter(
            base, frame, logprobs, spec.recipe,
            base_hash=spec.base_hash, on_step=on_step, checkpoints=checkpoints, workers=workers,
            byte_order=find_byte_order(logprobs, tokenizer, vocabulary_size),
            open_reader=lambda frozen: open_prefix_reader(
                spec.prefix_engine, frozen, spec.base_folder,
                spec.models_folder or spec.adapters_folder.parent / "models",
            ),
        )  # fmt: skip
    except DivergedError as error:

        def keep(error: DivergedError = error) -> bytes:
            keep_diverged(spec.adapters_folder, spec.recipe.student, error, provenance)
            return b""

        # All processes failed; torchrun would end the one that writes as soon as another ended.
        workers.share(keep)
        raise

    def write() -> bytes:
        adapter = write_adapter(
            spec.adapters_folder,
            trained,
            spec.recipe,
            tokenizer,
            provenance=provenance,
            rules=spec.rules,
        )
        checkpoints.clear()
        return _to_bytes(adapter)

    return TrainingOutcome(
        adapter=workers.share(write).decode(),
        training_key=provenance["training_key"],
        is_reused=False,
        steps=trained.steps,
        seconds=trained.seconds,
        best_validation_loss=trained.best_validation_loss,
    )


def _load_base(spec: TrainingSpec) -> Any:
    from assets.students.quantised import load_quantised_lm
    from serving.models.causal_lm import load_causal_lm

    load = load_quantised_lm if spec.recipe.kind == "qlora" else load_causal_lm
    return load(spec.base_folder, spec.recipe.dtype)


def _to_bytes(path: Path | None) -> bytes:
    return b"" if path is None else str(path).encode()


if __name__ == "__main__":
    sys.exit(main())
