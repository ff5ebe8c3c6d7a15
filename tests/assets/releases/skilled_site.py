"""A home with an index, a tiny base, and recipes whose students were judged: ready to release."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from assets import tables
from assets.parity.suite_evidence import identify_candidate
from assets.parity.tiers import gather_tiers
from assets.releases.assets import release_bundle
from assets.releases.baseline import Baseline
from assets.releases.bundling import ReleaseTerms, StudentTerms
from assets.releases.gate import decide
from assets.releases.gates import GatePolicy
from assets.releases.skills import SkillTerms
from serving.hashing import content_hash, folder_sha256
from serving.home import Home
from serving.models.causal_lm import hash_base_model
from serving.models.protocols import Price
from serving.pipeline.assembly import PipelineParts, estimate_tokens
from serving.pipeline.prompt import PromptFormat
from serving.pipeline.router import RouterPolicy
from serving.pipeline.validator import ValidatorPolicy
from serving.releases.manifest import TeacherEntry
from tests.assets.releases.test_gate import SOUND, make_report
from tests.deploy.tiny_site import TinySite
from tests.serving.fakes import CannedChatModel
from tests.tiny_student import make_adapter, make_base

NO_CALIBRATION = {"calibrator": None, "calibrator_hash": content_hash(None)}
BASELINE = Baseline(
    golden_set="abc", teacher="extractive v1", judge="j", judge_epoch="2026-11", rubric_version="1"
)
FAILING = {"routed|refusal_recall|all": {"numerator": 9.0, "value": 0.2}}


def make_row(schema: pl.Schema, **values: Any) -> pl.DataFrame:
    return pl.DataFrame([dict.fromkeys(schema) | values], schema=schema)


class SkilledSite:
    """A tiny site, and the tables that its recipes' runs would have left."""

    def __init__(self, folder: Path) -> None:
        self.site = TinySite(folder)
        self.home = Home(folder)
        self.base = make_base(folder / "models" / "tiny-base")
        self.prompt = PromptFormat(max_answer_tokens=8)
        # Random weights say nothing that a stricter validator would let through.
        self.validator = ValidatorPolicy(minimum_cite_coverage_ratio=0.0, minimum_support_ratio=0.0)
        self.router = RouterPolicy(
            min_retrieval_score=0.0, maximum_risk_ratio=None, explore_ratio=0.0
        )
        self.index = make_row(
            tables.VECTOR_INDEX,
            index_fingerprint=self.site.index,
            embedder_fingerprint=self.site.embedder.fingerprint,
            uri=f"index/{self.site.index}",
        )

        self.prices: dict[str, Price] = {}  # by student; of "" the teacher's
        self._adapters: dict[tuple[Path, int], tuple[str, str]] = {}

    def _train(self, base: Path, seed: int) -> tuple[str, str]:
        staged = make_adapter(self.home.root / "staged", base, seed=seed)
        sha256 = folder_sha256(staged)
        name = f"tiny@{sha256[:12]}"
        self.home.adapters.mkdir(exist_ok=True)
        staged.rename(self.home.adapters / name)
        return name, sha256

    @property
    def parts(self) -> PipelineParts:
        return PipelineParts(
            index_folder=self.home.index,
            embedder=self.site.embedder,
            k=2,
            teacher=CannedChatModel("extractive-v1"),
            prompt=self.prompt,
            router=self.router,
            validator=self.validator,
            count_tokens=estimate_tokens,
        )

    def make_terms(
        self, skills: Mapping[str, SkillTerms], tiers: tuple[str, ...] = ()
    ) -> ReleaseTerms:
        return ReleaseTerms(
            product="tiny",
            default_recipe="compact",
            promoted_phase="switch",
            teacher=TeacherEntry(
                provider="extractive", model="extractive-v1", price=self.prices.get("", Price())
            ),
            embedder_model=str(self.site.model),
            embedder_revision="unused",
            k=2,
            citation_ids="local",
            prompt_version=self.prompt.version,
            max_answer_tokens=self.prompt.max_answer_tokens,
            router=self.router,
            validator=self.validator,
            students={
                name: StudentTerms(
                    context_tokens=2048,
                    max_answer_tokens=8,
                    price=self.prices.get(name, Price()),
                )
                for name in ("tiny", "tinier")
            },
            skills=skills,
            tiers=tiers,
        )

    def judge(
        self,
        recipe: str,
        *,
        seed: int,
        base: Path | None = None,
        lane: str = "clean",
        report: Mapping[str, Any] | None = None,
        policy: GatePolicy | None = None,
        student: str = "tiny",
        fitted: Mapping[str, Any] | None = None,
        before: tuple[str, ...] = (),
        **said: Any,
    ) -> str:
        """Leave what a run of a recipe leaves, and return its adapter's name.

        `fitted` is what its calibration row says, `before` the recipes whose students are asked
        before its own. `said` changes columns of the verdict after the gate has spoken.
        """
        base = base or self.base
        if (base, seed) not in self._adapters:
            self._adapters[base, seed] = self._train(base, seed)
        name, sha256 = self._adapters[base, seed]
        adapter = make_row(
            tables.STUDENT_ADAPTER, recipe=recipe, kind="alora", student=student, adapter=name,
            adapter_sha256=sha256, base_model=str(base), base_revision="unused",
            base_hash=hash_base_model(base), activation="question", lane=lane,
        )  # fmt: skip
        calibration = make_row(
            tables.CALIBRATION, recipe=recipe, adapter_sha256=sha256, **(fitted or NO_CALIBRATION)
        )
        candidate = identify_candidate(
            self.parts,
            index_fingerprint=self.site.index,
            tiers=gather_tiers(
                self.home,
                (*before, recipe),
                adapter=adapter.row(0, named=True),
                fitted=calibration.row(0, named=True),
            ),
        )
        verdict = decide(
            make_report(**(report or {})),
            integrity=SOUND,
            policy=policy or GatePolicy(),
            evidence={"baseline": asdict(BASELINE)},
        ).to_frame(candidate)
        self._write("students/student_adapter", recipe, adapter)
        self._write("students/calibration", recipe, calibration)
        said_of_it = verdict.with_columns(**{n: pl.lit(value) for n, value in said.items()})
        self._write("releases/gate_verdict", recipe, said_of_it)
        return name

    def release(
        self, recipe: str, *, tiers: tuple[str, ...] = (), **skills: SkillTerms
    ) -> dict[str, Any]:
        """Make the asset release_bundle of a recipe, and return its row."""
        report = make_report()
        of_smaller = report.filter(pl.col("arm").str.starts_with("student")).with_columns(
            pl.col("arm").str.replace("student", "smaller", literal=True)
        )
        # The function itself: called as an asset, Dagster makes a new instance each time.
        make: Any = release_bundle.op.compute_fn
        made = make.decorated_fn(
            gate_verdict=self.read("releases/gate_verdict", recipe),
            parity_report=pl.concat([report, of_smaller]) if tiers else report,
            student_adapter=self.read("students/student_adapter", recipe),
            vector_index=self.index,
            seed_questions=pl.DataFrame({"text": ["Where do I put the key?"]}),
            calibration=self.read("students/calibration", recipe),
            pipeline_parts=self.parts,
            release_terms=self.make_terms(skills, tiers),
            home=self.home,
        )
        return made.value.row(0, named=True)

    def read(self, key: str, recipe: str) -> pl.DataFrame:
        return pl.read_parquet(self.home.table(key, recipe))

    def _write(self, key: str, recipe: str, frame: pl.DataFrame) -> None:
        path = self.home.table(key, recipe)
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(path)
