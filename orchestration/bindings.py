"""Roles bound to resources: every object the assets ask for, built on demand.

Belongs here: which resource fills which role with which settings. Does not belong here: what a
resource does (`resources`), the schema of the configuration (`config`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from assets import keys, tables
from assets.corpus.chunks import ChunkSizes
from assets.eval_set.expectations import GoldenPlan
from assets.labels.assets import LabellingPlan, ScorerPlan
from assets.labels.judging import Ruler
from assets.labels.local_scoring import LocalScorer
from assets.labels.production import find_releases, restore_answers
from assets.labels.selection import TeacherTerms, choose_split
from assets.monitoring.measurements import MonitoringPlan
from assets.paraphrases.assets import RewritingPlan
from assets.paraphrases.dreaming import DreamPlan, open_dreams
from assets.parity.arms import ArmPlan
from assets.parity.economics import EconomicsTerms
from assets.parity.experiments import Experiment, RouterVariant, list_experiments
from assets.parity.prices import StatedPrice, name_section
from assets.parity.tiers import fingerprint_before
from assets.releases.bundling import AdapterServer, ReleaseTerms, StudentTerms
from assets.releases.gates import GatePolicy
from assets.releases.skills import SkillTerms, fingerprint_skills
from assets.students.held_out import HeldOutPlan
from assets.students.recipe import AnyRecipe, load_recipe
from assets.traces.admission import admit_decisions, select_harvest
from assets.traces.deciding import is_asked, open_decisions
from assets.traces.hours import find_folder, list_hours, scan_hours
from assets.traces.requesting import open_deletions
from orchestration.config import (
    Config,
    RemoteSection,
    ScorerSection,
    TeacherSection,
    read_secret,
)
from orchestration.misses import date_misses, read_misses
from orchestration.released_students import choose_skills, plan_arms
from resources.chat_models import CachedChatModel
from resources.corpus import CorpusFolder
from resources.embeddings import CachedEmbedder
from resources.input_files import GoldenFile, HarvestedFile, SeedFile
from resources.lake import LakeIOManager
from resources.last_tables import LastTables
from resources.pacing import Pace
from resources.providers import connect_chat_model, identify_provider
from resources.purchases import Purchases
from resources.recalled import RecallingChatModel
from resources.scorers import VLLMScorer
from resources.scores import KeptScorer
from resources.students import Students, StudentSettings
from resources.suite_files import SuiteFiles
from resources.traces import Harvest, SealedSegments
from serving.home import Home
from serving.models.embedded import resolve_model
from serving.models.embedder import load_embedder
from serving.models.protocols import Completion, Embedder, Price, Progress, Reranker, TokenScorer
from serving.pipeline.assembly import PipelineParts, estimate_tokens
from serving.pipeline.prompt import PromptFormat
from serving.pipeline.router import RouterPolicy
from serving.pipeline.validator import ValidatorPolicy
from serving.releases.manifest import ReleaseManifest, RerankerEntry, TeacherEntry

if TYPE_CHECKING:
    from fastapi import FastAPI


@dataclass(eq=False)
class Bindings:
    """The objects of one configuration. Each is built once, when it is first asked for."""

    config: Config
    progress: Progress

    @cached_property
    def home(self) -> Home:
        """The layout of UNDERSTUDY_HOME."""
        return Home(self.config.home)

    @cached_property
    def corpus(self) -> CorpusFolder:
        """The documentation files."""
        corpus = self.config.product.corpus
        return CorpusFolder(
            path=corpus.path, include=corpus.include, exclude=corpus.exclude, url=corpus.url
        )

    @cached_property
    def traces(self) -> SealedSegments:
        """What servers have written and sealed."""
        return SealedSegments(self.home.traces)

    @cached_property
    def seeds(self) -> SeedFile:
        """The seed questions."""
        return SeedFile(self.config.seeds.path)

    @cached_property
    def feedback_segments(self) -> SealedSegments:
        """What readers thought of answers: a store of its own."""
        return SealedSegments(self.home.traces.with_name("feedback"))

    @cached_property
    def harvested(self) -> Harvest:
        """The curated production questions: those admitted here, and those of a file if any."""
        file = HarvestedFile(self.config.seeds.harvested, tables.HARVESTED_QUESTIONS)
        return Harvest(file, self._admit_decisions)

    def _admit_decisions(self) -> pl.DataFrame:
        decisions = open_decisions(self.home).read()
        if decisions.is_empty():
            return pl.DataFrame(schema=tables.HARVESTED_QUESTIONS)
        tombstones = open_deletions(self.home).read()
        count = len(self.seeds.read())
        return select_harvest(admit_decisions(decisions, tombstones, handwritten_count=count))

    @cached_property
    def golden(self) -> GoldenFile:
        """The frozen golden set."""
        return GoldenFile(self.config.eval.golden)

    @cached_property
    def suites(self) -> SuiteFiles:
        """The suites beside the golden set."""
        return SuiteFiles.name(**dict(self.config.eval.suites))

    @cached_property
    def golden_plan(self) -> GoldenPlan:
        """How many cases each bucket was frozen with."""
        return GoldenPlan(
            cases_by_bucket={str(b): n for b, n in self.config.eval.cases_by_bucket.items()}
        )

    @cached_property
    def embedder(self) -> CachedEmbedder:
        """The embedding model, verified here and loaded at first use, behind its kept vectors."""
        return CachedEmbedder(self.live_embedder, self.home.embeddings)

    @cached_property
    def live_embedder(self) -> Embedder:
        """The embedding model itself: a probe of it, or users' texts, are kept nowhere."""
        section = self.config.embedder
        return load_embedder(section.model, section.revision, self.home.models, self.progress)

    @cached_property
    def reranker(self) -> Reranker | None:
        """The cross-encoder, if the configuration names one."""
        from serving.models.cross_encoder import load_reranker

        section = self.config.retrieval.reranker
        if section is None:
            return None
        return load_reranker(section.model, section.revision, self.home.models, self.progress)

    def _pin_reranker(self) -> RerankerEntry | None:
        section, reranker = self.config.retrieval.reranker, self.reranker
        if section is None or reranker is None:
            return None
        return RerankerEntry(
            model=section.model, revision=section.revision, fingerprint=reranker.fingerprint
        )

    @cached_property
    def embedded_app(self) -> "FastAPI":
        """The extractive teacher and judge: one app, so a sentence is embedded once for both."""
        from serving.models.extractive.app import create_app

        return create_app(self.embedder)

    @cached_property
    def teacher(self) -> CachedChatModel:
        """The teacher, cached and budgeted."""
        teacher = self.config.teacher
        # Production asks for no logprobs, so its answers cannot stand in where they are wanted.
        recall = None if teacher.top_logprobs else self._recall_answers
        return self._connect(
            teacher, teacher.budget_usd, top_logprobs=teacher.top_logprobs, recall=recall
        )

    def _recall_answers(self) -> dict[str, Completion]:
        """Return what the teacher answered to admitted questions in production."""
        admitted, chunks = self.harvested.admit(), self.home.table(keys.CHUNKS.to_user_string())
        if admitted.is_empty() or not chunks.is_file():
            return {}
        traces = scan_hours(list_hours(find_folder(self.home))).filter(
            is_asked(), pl.col("trace_id").is_in(admitted["source_trace_id"].to_list())
        )
        return restore_answers(
            traces.collect(),
            pl.read_parquet(chunks),
            prompt=self.prompt,
            teacher=self.config.teacher.model,
            releases=find_releases(self.home.releases, self.is_todays_teacher),
        )

    def is_todays_teacher(self, manifest: ReleaseManifest) -> bool:
        """Whether a release's teacher is served where today's is, or made of the same parts."""
        today, then = self.config.teacher, manifest.teacher

        def identify(entry: TeacherSection | TeacherEntry, embedder: Any) -> str:
            return identify_provider(
                provider=entry.provider, base_url=entry.base_url, embedder=lambda: embedder
            )

        return (then.model, identify(then, manifest.embedder)) == (
            today.model, identify(today, self.embedder),
        )  # fmt: skip

    @cached_property
    def judge(self) -> CachedChatModel:
        """The judge, cached and budgeted apart from the teacher."""
        return self._connect(self.config.judge, self.config.judge.budget_usd)

    @cached_property
    def prompt(self) -> PromptFormat:
        """The prompt's wording and numbering."""
        longest = max(student.max_answer_tokens for student in self.config.students.values())
        return PromptFormat(citation_ids=self.config.prompt.citation_ids, max_answer_tokens=longest)

    @cached_property
    def router(self) -> RouterPolicy:
        """Thresholds of the router."""
        return RouterPolicy(**self.config.router.model_dump())

    @cached_property
    def validator(self) -> ValidatorPolicy:
        """Limits of the validator."""
        return ValidatorPolicy(**self.config.validator.model_dump())

    @cached_property
    def pipeline_parts(self) -> PipelineParts:
        """The request path, but for index snapshot and student."""
        return PipelineParts(
            index_folder=self.home.index,
            embedder=self.embedder,
            k=self.config.retrieval.k,
            teacher=self.teacher,
            prompt=self.prompt,
            router=self.router,
            validator=self.validator,
            count_tokens=self.count_student_tokens,
            reranker=self.reranker,
        )

    def count_student_tokens(self, text: str) -> int:
        """Count with the first student's tokenizer: the unit of `router.long_context_tokens`.

        A product whose students are all behind servers has no tokenizer: there it is an estimate.
        """
        if all(section.provider != "local" for section in self.config.students.values()):
            return estimate_tokens(text)
        return len(self._student_tokenizer.encode(text, add_special_tokens=False))

    @cached_property
    def _student_tokenizer(self) -> Any:
        students = self.config.students
        local = (name for name, section in students.items() if section.provider == "local")
        return self.students.tokenizer(next(local, next(iter(students))))

    @cached_property
    def students(self) -> Students:
        """Base models, tokenizers and adapted students by name."""
        return Students(
            settings={
                name: StudentSettings(
                    provider=section.provider,
                    local_engine=section.local_engine,
                    base_model=section.base_model,
                    revision=section.revision if section.provider == "local" else "remote",
                    base_url=section.base_url,
                    context_tokens=section.context_tokens,
                    max_answer_tokens=section.max_answer_tokens,
                    price=Price(**section.price.model_dump(exclude_none=True)),
                )
                for name, section in self.config.students.items()
            },
            recipes_folder=self.config.recipes,
            home=self.home,
            progress=self.progress,
            connect=self._connect_student,
            open_embedder=lambda: self.embedder,
        )

    def _connect_student(self, name: str) -> CachedChatModel:
        section = self.config.students[name]
        return self._connect(section.to_remote(), section.budget_usd)

    @cached_property
    def scorer_plan(self) -> ScorerPlan:
        """Who supplies soft targets, if the configuration names anyone."""
        section, students = self.config.scorer, self.config.students.values()
        is_told = self.config.teacher.top_logprobs and any(s.provider == "local" for s in students)
        plan = ScorerPlan(
            open_scorer=None,
            open_kept=(lambda: self.teacher) if is_told else None,
            open_tokenizer=lambda: self._student_tokenizer,
            max_answer_tokens=self.prompt.max_answer_tokens,
            context_tokens=max(s.context_tokens for s in students),
        )
        if section is None:
            return plan
        return replace(
            plan,
            open_scorer=lambda: self._open_scorer(section),
            top_k=section.top_k,
            maximum_examples=section.maximum_examples,
        )

    @cached_property
    def skills(self) -> dict[str, SkillTerms]:
        """The skills of every release; one that no run could release is refused."""
        return choose_skills(self.config, self.recipes) if self.config.releases.skills else {}

    @cached_property
    def release_terms(self) -> ReleaseTerms:
        """The configured part of every release."""
        teacher = self.config.teacher
        return ReleaseTerms(
            product=self.config.product.name,
            default_recipe=self.config.default_recipe,
            promoted_phase=self.config.serving.phase,
            teacher=TeacherEntry(
                provider=teacher.provider,
                model=teacher.model,
                base_url=teacher.base_url,
                api_key_env=teacher.api_key_env,
                price=Price(**teacher.price.model_dump(exclude_none=True)),
                timeout_seconds=teacher.timeout_seconds,
            ),
            embedder_model=self.config.embedder.model,
            embedder_revision=self.config.embedder.revision,
            k=self.config.retrieval.k,
            reranker=self._pin_reranker(),
            citation_ids=self.config.prompt.citation_ids,
            prompt_version=self.prompt.version,
            max_answer_tokens=self.prompt.max_answer_tokens,
            router=self.router,
            validator=self.validator,
            students={
                name: StudentTerms(
                    engine=section.provider,
                    local_engine=section.local_engine,
                    base_url=section.base_url,
                    api_key_env=section.api_key_env,
                    adapter_server=self._find_adapter_server(name),
                    timeout_seconds=section.timeout_seconds,
                    context_tokens=section.context_tokens,
                    max_answer_tokens=section.max_answer_tokens,
                    price=Price(**section.price.model_dump(exclude_none=True)),
                )
                for name, section in self.config.students.items()
            },
            skills=self.skills,
            tiers=self.arm_plan.released,
        )

    def _find_adapter_server(self, student: str) -> AdapterServer | None:
        server = self.config.serving.adapters.get(student)
        return AdapterServer(**server.model_dump()) if server else None

    @cached_property
    def chunk_sizes(self) -> ChunkSizes:
        """Target and maximum of a chunk."""
        return ChunkSizes(**self.config.chunking.model_dump())

    @cached_property
    def rewriting_plan(self) -> RewritingPlan:
        """How seeds multiply."""
        seeds = self.config.seeds
        return RewritingPlan(
            seeds_per_cluster=seeds.seeds_per_cluster,
            paraphrases_per_medoid=seeds.paraphrases_per_medoid,
            temperature=seeds.paraphrase_temperature,
            concurrency=self.config.teacher.concurrency,
        )

    @cached_property
    def dreamer(self) -> CachedChatModel:
        """The teacher as it writes by night: the same kept answers, a budget of its own."""
        teacher, loop = self.config.teacher, self.config.loop
        return self._connect(teacher, loop.dream_budget_usd, top_logprobs=teacher.top_logprobs)

    @cached_property
    def dream_plan(self) -> DreamPlan:
        """What a night may write."""
        return DreamPlan(
            maximum_questions=self.config.loop.dream_questions,
            questions_per_spot=self.config.seeds.paraphrases_per_medoid,
            temperature=self.config.seeds.paraphrase_temperature,
            concurrency=self.config.teacher.concurrency,
            window_days=self.config.monitoring.window_days,
            is_taught=lambda seed_id: choose_split(seed_id) == "train",
            read_misses=lambda: read_misses(self.home, self.config.default_recipe),
            date_misses=lambda: date_misses(self.home, self.config.default_recipe),
        )

    @cached_property
    def labelling_plan(self) -> LabellingPlan:
        """Terms of the labels and the ruler of the judge."""
        return LabellingPlan(
            terms=TeacherTerms(
                teacher_id=self.config.teacher.model,
                license=self.config.teacher.license,
                is_trainable=self.config.teacher.trainable,
            ),
            concurrency=self.config.teacher.concurrency,
            ruler=Ruler(rater_id=self.config.judge.model, epoch=self.config.judge.epoch),
            judge_concurrency=self.config.judge.concurrency,
            minimum_score=self.config.judge.minimum_score,
        )

    @cached_property
    def gate_policy(self) -> GatePolicy:
        """What a student must prove."""
        return GatePolicy(**self.config.gates.model_dump())

    @cached_property
    def arm_plan(self) -> ArmPlan:
        """Which arms are set side by side, and which students are asked in turn."""
        names_several = self.config.releases.tiers or self.config.parity.smaller_recipe
        return plan_arms(self.config, self.recipes if names_several else {})

    @cached_property
    def economics_terms(self) -> EconomicsTerms:
        """What no run measures of the worth of a student."""
        students = self.config.students.items()
        stated = {"teacher": self.config.teacher.price}
        stated |= {name_section(name): section.price for name, section in students}
        prices = {name: StatedPrice(**price.model_dump()) for name, price in stated.items()}
        return EconomicsTerms(**self.config.economics.model_dump(), prices=prices)

    @cached_property
    def monitoring_plan(self) -> MonitoringPlan:
        """What users were promised, which weeks are compared, and the gate's limits in shadow."""
        return MonitoringPlan(
            **self.config.monitoring.model_dump(),
            minimum_agreement_ratio=self.gate_policy.minimum_agreement_ratio,
            minimum_agreement_pairs=self.gate_policy.minimum_agreement_pairs,
            unregistered_cluster_cases=self.gate_policy.unregistered_cluster_cases,
        )

    @cached_property
    def purchases(self) -> Purchases:
        """What was ever paid for the answers of this home."""
        return Purchases(
            self.home.answer_cache, [self.config.teacher.model, self.config.judge.model]
        )

    @cached_property
    def recipes(self) -> dict[str, AnyRecipe]:
        """Every recipe by name."""
        paths = sorted(self.config.recipes.glob("*.yaml"))
        return {path.stem: load_recipe(path) for path in paths}

    @cached_property
    def experiments(self) -> dict[str, Experiment]:
        """Every prediction that can be put to the test."""
        variants = {
            name: RouterVariant(**section.model_dump())
            for name, section in self.config.experiments.items()
        }
        default = self.config.default_recipe
        return list_experiments(self.recipes, variants, default_recipe=default)

    @cached_property
    def held_out_plan(self) -> HeldOutPlan:
        """How many held-out questions a student is asked."""
        return HeldOutPlan(**self.config.held_out.model_dump())

    def to_resources(self) -> dict[str, object]:
        """Return a code location's resources. Models are built when a step first needs them."""

        def later(name: str) -> dg.ResourceDefinition:
            return dg.ResourceDefinition(lambda _: getattr(self, name))

        lazy = (
            "embedder", "live_embedder", "teacher", "dreamer", "judge", "pipeline_parts",
            "students",
        )  # fmt: skip
        return {
            "io_manager": LakeIOManager(
                self.home.lake, tables.BY_KEY, private_stages=tables.PRIVATE_STAGES
            ),
            "last_tables": LastTables(self.home, tables.BY_KEY),
            # --force empties `last_tables`; what was recorded cannot be made anew, and stays here.
            "recorded_tables": LastTables(self.home, tables.BY_KEY),
            "home": self.home,
            "corpus": self.corpus,
            "traces": self.traces,
            "feedback_segments": self.feedback_segments,
            "seeds": self.seeds,
            "harvested": self.harvested,
            "golden": self.golden,
            "suites": self.suites,
            "golden_plan": self.golden_plan,
            "progress": self.progress,
            "chunk_sizes": self.chunk_sizes,
            "rewriting_plan": self.rewriting_plan,
            "dreams": open_dreams(self.home),
            "dream_plan": self.dream_plan,
            "labelling_plan": self.labelling_plan,
            "gate_policy": self.gate_policy,
            "suite_limits": self.gate_policy.suite_limits,
            "held_out_plan": self.held_out_plan,
            "arm_plan": self.arm_plan,
            "router_policy": self.router,
            "economics_terms": self.economics_terms,
            "purchases": self.purchases,
            "monitoring_plan": self.monitoring_plan,
            "pipes": dg.PipesSubprocessClient(),
            "release_terms": self.release_terms,
            "scorer_plan": self.scorer_plan,
            "experiments": later("experiments"),
            **{name: later(name) for name in lazy},
        }

    def observe_sources(self) -> dict[dg.AssetKey, str]:
        """Return the current data version of every input that the chain does not make."""
        return {
            keys.SOURCE_FILES: self.corpus.fingerprint(),
            keys.TRACE_SEGMENTS: self.traces.fingerprint(),
            keys.FEEDBACK_SEGMENTS: self.feedback_segments.fingerprint(),
            keys.DECISION_JOURNAL: open_decisions(self.home).fingerprint(),
            keys.DELETION_JOURNAL: open_deletions(self.home).fingerprint(),
            keys.SEED_FILE: self.seeds.fingerprint(),
            keys.HARVESTED_FILE: self.harvested.fingerprint(),
            keys.DREAM_JOURNAL: open_dreams(self.home).fingerprint(),
            keys.GOLDEN_FILE: self.golden.fingerprint(),
            keys.SUITE_FILES: self.suites.fingerprint(),
            keys.SKILL_STUDENTS: fingerprint_skills(self.home, self.skills),
        }

    def observe_smaller(self, recipe: str) -> dict[dg.AssetKey, str]:
        """Return the version of the students that are asked before that of a recipe."""
        return {keys.SMALLER_STUDENTS: fingerprint_before(self.home, self.arm_plan, recipe)}

    def _open_scorer(self, section: ScorerSection) -> TokenScorer:
        inner, server = self._connect_scorer(section), section.base_url or ""
        return KeptScorer(inner, self.home.answer_cache, server=server)

    def _connect_scorer(self, section: ScorerSection) -> TokenScorer:
        if section.provider == "vllm":
            return VLLMScorer(
                model=section.model,
                revision=section.revision,
                base_url=section.base_url or "",
                tokenizer=self._student_tokenizer,
                pace=Pace(section.concurrency, deadline_seconds=section.deadline_seconds),
                api_key=read_secret(section.api_key_env),
                timeout_seconds=section.timeout_seconds,
            )
        base = resolve_model(section.model, section.revision, self.home.models, self.progress)
        return LocalScorer.load(
            base.path,
            scorer_id=f"{section.model}@{section.revision}",
            tokenizer=self._student_tokenizer,
        )

    def _connect(
        self,
        section: RemoteSection,
        budget_usd: float,
        *,
        top_logprobs: int = 0,
        recall: Callable[[], Mapping[str, Completion]] | None = None,
    ) -> CachedChatModel:
        model = connect_chat_model(
            provider=section.provider,
            model=section.model,
            base_url=section.base_url,
            api_key=read_secret(section.api_key_env),
            price=Price(**section.price.model_dump(exclude_none=True)),
            timeout_seconds=section.timeout_seconds,
            embedded_app=lambda: self.embedded_app,
            top_logprobs=top_logprobs,
            structured_output=section.structured_output,
        )
        return CachedChatModel(
            model if recall is None else RecallingChatModel(model, recall),
            self.home.answer_cache,
            budget_usd=budget_usd,
            identity=identify_provider(
                provider=section.provider,
                base_url=section.base_url,
                embedder=lambda: self.embedder,
                top_logprobs=top_logprobs,
            ),
            pace=Pace(section.concurrency, deadline_seconds=section.deadline_seconds),
        )
