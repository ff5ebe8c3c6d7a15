"""The ratchet in a release: its thresholds are those of its own student's held-out answers."""

from dataclasses import replace
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from assets.parity.tiers import TierStudent, state_fitted
from assets.releases.bundling import AdapterServer, ReleaseTerms, StudentTerms, write_manifest
from assets.students.calibration import Engine, calibrate, read_calibrator
from serving.models.protocols import Price
from serving.pipeline.confidence import ConfidenceCalibration, RiskThreshold
from serving.pipeline.router import RouterPolicy
from serving.pipeline.validator import ValidatorPolicy
from serving.releases.manifest import ReleaseManifest, TeacherEntry
from tests.assets.students.held_out_rows import draw_answers, make_answers
from tests.serving.pipeline.test_confidence import make_calibration

TERMS = ReleaseTerms(
    product="tiny", default_recipe="compact", promoted_phase="switch",
    teacher=TeacherEntry(provider="extractive", model="extractive-v1"),
    embedder_model="minilm", embedder_revision="embedded", k=2, citation_ids="local",
    prompt_version="p", max_answer_tokens=8, router=RouterPolicy(), validator=ValidatorPolicy(),
    students={"tiny": StudentTerms(context_tokens=2048, max_answer_tokens=8, price=Price())},
)  # fmt: skip
SHAS = ("a" * 64, "b" * 64)


def judge_student(sha256: str) -> dict[str, Any]:
    """Return the calibration row of a student whose confidence says much of its answers."""
    rows = [
        row
        for split, seed in (("calibration", 1), ("validation", 2))
        for row in draw_answers(240, split=split, seed=seed, sharpness=8.0)
    ]
    engine = Engine(adapter_sha256=sha256, engine="local", dtype="float32")
    return calibrate(make_answers(rows).with_columns(adapter_sha256=pl.lit(sha256)), engine)


def release(
    sha256: str,
    calibration: ConfidenceCalibration | None,
    terms: ReleaseTerms = TERMS,
    verdict: str = "PROMOTE",
    **recipe: str | None,
) -> ReleaseManifest:
    adapter: dict[str, Any] = {
        "kind": "alora", "student": "tiny", "adapter": f"tiny@{sha256[:12]}", "lane": "clean",
        "adapter_sha256": sha256, "base_model": "b", "base_revision": "r", "base_hash": "h",
        "activation": "question", **recipe,
    }  # fmt: skip
    return write_manifest(
        terms=terms,
        gates=[{"verdict": verdict}],
        losses=["It refuses a little more often."],
        tiers=[TierStudent(adapter=adapter, fitted=state_fitted(calibration))],
        index={"uri": "index/i", "index_fingerprint": "i", "embedder_fingerprint": "e"},
        golden_prompts=[],
    )


def read_thresholds(manifest: ReleaseManifest) -> dict[float, float | None]:
    calibration = manifest.students["tiny"].calibration
    assert calibration is not None
    return {at.risk_limit_ratio: at.threshold for at in calibration.thresholds}


def test_the_second_release_ships_the_thresholds_of_its_own_student_and_never_the_firsts():
    at = RiskThreshold(risk_limit_ratio=0.05, threshold=0.6, accepted_count=59)
    first = make_calibration(adapter_sha256=SHAS[0], thresholds=(at,))
    row = judge_student(SHAS[1])
    before = read_thresholds(release(SHAS[0], first))
    now = read_thresholds(release(SHAS[1], read_calibrator(row)))
    assert now == {at["risk_limit_ratio"]: at["threshold"] for at in row["thresholds"]}
    assert any(now.values()), "the surer student is trusted at some risk"
    assert now[0.05] != before[0.05]
    with pytest.raises(ValidationError, match="calibration was fitted for adapter"):
        release(SHAS[1], first)


@pytest.mark.parametrize("verdict", ["HOLD", "INCONCLUSIVE"])
def test_a_student_without_promote_is_published_in_shadow_where_that_is_configured(verdict):
    """The evidence for PROMOTE is partly shadow traffic: it must be possible before PROMOTE."""
    fitted = make_calibration(adapter_sha256=SHAS[0])
    for phase, published in (("imposter", "imposter"), ("switch", "hitchhiker")):
        terms = replace(TERMS, promoted_phase=phase)
        assert release(SHAS[0], fitted, terms).phase == phase
        assert release(SHAS[0], fitted, terms, verdict=verdict).phase == published


@pytest.mark.parametrize(
    ("kind", "activation", "engine"),
    [
        ("lora", "all", "vllm"),
        ("lora", "question", "local"),
        ("alora", "question", "local"),
        ("qlora", "all", "local"),
        ("few_shot", None, "local"),
    ],
)
def test_a_server_of_adapters_is_asked_for_ordinary_loras_alone(kind, activation, engine):
    server = AdapterServer(provider="vllm", base_url="http://127.0.0.1:1/v1", api_key_env="KEY")
    student = replace(TERMS.students["tiny"], adapter_server=server)
    terms = replace(TERMS, students={"tiny": student})
    entry = release(SHAS[0], None, terms, kind=kind, activation=activation).students["tiny"]
    is_served = engine == "vllm"
    assert (entry.engine, entry.base_url, entry.api_key_env) == (
        engine, server.base_url if is_served else None, "KEY" if is_served else None,
    )  # fmt: skip
