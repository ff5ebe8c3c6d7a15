"""Embedded models: the pinned bytes or an error that names both hashes."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from serving.errors import HashMismatchError, InvalidInputError
from serving.models import embedded
from serving.models.embedded import EMBEDDED_MODELS, resolve_model
from serving.models.engine_conversion import prepare_engine, prepare_prefix_graph

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def test_the_pins_are_the_ones_that_were_published():
    assert EMBEDDED_MODELS[MINILM].sha256.startswith("53aa51172d142c89")
    assert EMBEDDED_MODELS["HuggingFaceTB/SmolLM2-135M-Instruct"].sha256.startswith("b179c9523d0e")


def test_a_model_is_prepared_once_and_verified_every_time(tmp_path):
    first = resolve_model(MINILM, "embedded", tmp_path)
    receipt = first.path / "prepared.json"
    stamp = receipt.stat().st_mtime_ns
    assert resolve_model(MINILM, "embedded", tmp_path) == first
    assert receipt.stat().st_mtime_ns == stamp
    weights = first.path / "config.json"
    weights.write_text(weights.read_text(encoding="utf-8") + " ", encoding="utf-8")
    expected = json.loads(receipt.read_text(encoding="utf-8"))["files"]["config.json"]
    with pytest.raises(HashMismatchError, match=expected):
        resolve_model(MINILM, "embedded", tmp_path)


def test_a_wheel_with_other_bytes_is_refused_with_both_hashes(tmp_path, monkeypatch):
    model = EMBEDDED_MODELS[MINILM]
    pinned = "0" * 64
    monkeypatch.setitem(
        embedded.EMBEDDED_MODELS,
        MINILM,
        embedded.EmbeddedModel(
            distribution=model.distribution,
            version=model.version,
            weights=model.weights,
            sha256=pinned,
            prepare=model.prepare,
        ),
    )
    with pytest.raises(HashMismatchError) as error:
        resolve_model(MINILM, "embedded", tmp_path)
    assert pinned in str(error.value)
    assert model.sha256 in str(error.value)
    assert not any(tmp_path.iterdir())


def test_a_local_folder_is_taken_as_it_is_and_hashed(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    resolved = resolve_model(str(folder), "anything", tmp_path / "models")
    assert resolved.path == folder
    (folder / "config.json").write_text("{ }", encoding="utf-8")
    assert resolve_model(str(folder), "anything", tmp_path / "models").sha256 != resolved.sha256


def test_a_hub_name_needs_a_pinned_revision(tmp_path):
    with pytest.raises(InvalidInputError, match="pinned revision"):
        resolve_model("some/model", "main", tmp_path)


def test_an_unknown_embedded_name_lists_the_known_ones(tmp_path):
    with pytest.raises(InvalidInputError, match="SmolLM2"):
        resolve_model("some/model", "embedded", tmp_path)


@pytest.mark.parametrize(
    "name", ["../models/gone", "/models/gone", "~/gone", "a/b/c", "with space"]
)
def test_a_folder_that_does_not_exist_is_no_name_on_a_hub(tmp_path, name):
    with pytest.raises(InvalidInputError, match="no such folder"):
        resolve_model(name, "0123abc", tmp_path)


@pytest.mark.parametrize(
    "raised", [ConnectionError("no route"), ValueError("bad repo\nand more"), OSError("")]
)
def test_what_the_hub_does_not_hand_out_is_told_with_name_and_revision(
    tmp_path, monkeypatch, raised
):
    def refuse(*_, **__):
        raise raised

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(InvalidInputError, match="some/model") as error:
        resolve_model("some/model", "0123abc", tmp_path)
    assert "0123abc" in error.value.attempted
    assert error.value.found in {"no route", "bad repo", "OSError"}


def _fail(number):
    def fail(path, *_, **__):
        raise OSError(number, os.strerror(number), str(path))

    return fail


@pytest.mark.parametrize(
    "prepare",
    [
        lambda _base, models: resolve_model(MINILM, "embedded", models),
        prepare_prefix_graph,
        lambda base, models: prepare_engine(base, None, "openvino", models),
    ],
)
def test_a_home_that_cannot_be_written_is_told_with_model_and_folder(
    tmp_path, tiny_base, monkeypatch, prepare
):
    monkeypatch.setattr(Path, "mkdir", _fail(errno.EROFS))
    with pytest.raises(InvalidInputError, match="Read-only file system") as error:
        prepare(tiny_base, tmp_path / "models")
    assert error.value.attempted.startswith("preparing ")
    assert str(tmp_path / "models") in error.value.attempted
    assert "copy `models/`" in error.value.next_step


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, InvalidInputError),
        (errno.EACCES, InvalidInputError),
        (errno.EPERM, InvalidInputError),
        (errno.EIO, OSError),  # a broken disk is no matter of permissions or room
    ],
)
def test_what_ends_a_preparation_half_way_leaves_nothing(tmp_path, monkeypatch, number, kind):
    failing = replace(EMBEDDED_MODELS[MINILM], prepare=_fail(number))
    monkeypatch.setitem(embedded.EMBEDDED_MODELS, MINILM, failing)
    with pytest.raises(kind, match=os.strerror(number)):
        resolve_model(MINILM, "embedded", tmp_path)
    assert not any(tmp_path.iterdir())
