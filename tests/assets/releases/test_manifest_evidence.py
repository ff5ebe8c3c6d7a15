"""The evidence in a built release: every gate with its number, its limit and its n."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from assets.releases.gate import decide
from assets.releases.gates import GatePolicy
from serving.releases.bundle import verify_bundle
from tests.assets.releases.skilled_site import FAILING, SkilledSite
from tests.assets.releases.test_gate import SOUND, make_report

POLICY = GatePolicy(margin_ratio=0.09, suite_margin_ratio=0.04, minimum_agreement_pairs=700)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> SkilledSite:
    return SkilledSite(tmp_path_factory.mktemp("evidence"))


@pytest.mark.parametrize("report", [{}, FAILING], ids=["promoted", "held"])
def test_the_manifest_of_a_bundle_holds_each_gate_with_number_limit_and_n(site, report):
    site.judge("compact", seed=1, report=report, policy=POLICY)
    row = site.release("compact")
    manifest = verify_bundle(site.home.releases / row["release_id"])
    decided = decide(make_report(**report), integrity=SOUND, policy=POLICY)
    assert manifest.gate.verdict == decided.verdict == row["verdict"]
    read = ("gate", "outcome", "is_gating", "number", "relation", "limit", "unit", "n", "detail")
    found = [tuple(gate[name] for name in read) for gate in manifest.gate.gates]
    assert found == [
        (
            g.name, g.outcome, g.is_gating, g.number, g.relation, g.limit, g.unit, g.n, g.detail
        )
        for g in decided.gates
    ]  # fmt: skip
    assert len(found) == 11
    for gate in manifest.gate.gates:
        assert json.loads(str(gate["evidence"]))["policy"] == asdict(POLICY)


def test_the_evidence_is_under_the_hash_of_the_release(site: SkilledSite):
    site.judge("compact", seed=1, policy=POLICY)
    folder = Path(site.release("compact")["folder"])
    site.judge("compact", seed=1, policy=GatePolicy(margin_ratio=0.10))
    other = Path(site.release("compact")["folder"])
    assert folder != other
