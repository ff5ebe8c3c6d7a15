"""The request path: retrieve -> route -> model -> validate -> fallback. One for three callers.

Production answers users with it, labelling asks it for the teacher's answers, evaluation runs every
arm through it. Belongs here: the order of the steps. Does not belong here: what a step records
(`answered`), HTTP, traces on disk, caching and breakers (a `ChatModel` may have either).
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from serving.errors import BudgetExceededError, ModelError
from serving.models.protocols import (
    ChatModel,
    ChatRequest,
    Retriever,
    ServedBy,
    is_stopped,
)
from serving.pipeline.answered import (
    Answered,
    Asked,
    Attempt,
    Progress,
    choose_last,
    choose_server,
    elapsed_ms,
    is_usable,
)
from serving.pipeline.circumstances import ORDINARY, Circumstances
from serving.pipeline.confidence import (
    ConfidenceCalibration,
    estimate_confidence,
    read_signals,
)
from serving.pipeline.drafting import complete_for
from serving.pipeline.prompt import DraftAnswer, PromptFormat, read_answer, write_refusal
from serving.pipeline.questions import normalise_question
from serving.pipeline.router import (
    DETOURS,
    Obstacle,
    Phase,
    Route,
    RouterPolicy,
    choose_route,
    detour,
    doubt_answer,
    draw_route,
    has_high_stakes,
)
from serving.pipeline.skills import Skill, asks_high_stakes, choose_skill
from serving.pipeline.tiers import Tier
from serving.pipeline.validator import ValidatorPolicy, validate

__all__ = ["AnswerPipeline", "Answered", "Attempt", "Mode", "Tier", "choose_last"]

Mode = Literal["routed", "teacher", "student"]
"""`routed`: the router decides, and student answers that are invalid or not sure enough fall back
to the teacher. `teacher` and `student`: that model answers alone (the arms of the report); an
invalid answer is shown as a refusal, as it would be to a user."""


@dataclass(frozen=True, kw_only=True)
class AnswerPipeline:
    """The assembled path. `count_tokens` counts with the student's tokenizer.

    It does so in a thread, unless `counts_slowly` says that it costs next to nothing. Without a
    `calibration` of the student its answers have no confidence, and none is doubted. `smaller` are
    students before it, the smallest first: each takes what its certified confidence allows, and
    `student` the rest. A question for one of `skills` is that skill's student's alone.
    """

    retriever: Retriever
    teacher: ChatModel
    student: ChatModel | None
    prompt: PromptFormat
    router: RouterPolicy
    validator: ValidatorPolicy
    phase: Phase = "switch"
    count_tokens: Callable[[str], int]
    counts_slowly: bool = True
    calibration: ConfidenceCalibration | None = None
    smaller: tuple[Tier, ...] = ()
    skills: tuple[Skill, ...] = ()

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The students in the order they are asked; one nothing is certified for takes nothing."""
        if self.student is None:
            return ()
        certified = (t for t in self.smaller if t.find_threshold(self.router) is not None)
        return (*certified, Tier(model=self.student, calibration=self.calibration))

    def find_student(self, skill: str | None) -> ChatModel | None:
        """Return the student that answers alone for a skill, or for none."""
        chosen = choose_skill(skill, (), self.skills)
        return chosen.tier.model if chosen else self.student

    async def answer(
        self,
        question: str,
        *,
        prefer_quality: bool = False,
        skill: str | None = None,
        mode: Mode = "routed",
        seed: int = 0,
        around: Circumstances = ORDINARY,
        progress: Progress | None = None,
    ) -> Answered:
        """Answer one question; another `seed` is another draw, never taken from this one's cache.

        `skill` names who of `skills` it is for; None: where the best chunk lies decides. In
        `progress` every step is noted, for a caller who has to tell what became of one unanswered.

        Never returns an invalid answer: what no model could answer validly becomes a refusal.

        Raises:
            ModelError: no attempt produced any text (upstream down, deadline, budget). When only
                the fallback fails, the user gets a refusal and both attempts are recorded.
            InvalidInputError: there is no skill of that name.
        """
        started = time.perf_counter()
        question = normalise_question(question)
        hits = await self.retriever.retrieve(question)
        retrieval_ms = elapsed_ms(started)
        request = replace(self.prompt.write_request(question, hits), seed=seed)
        asked = Asked(
            question=question,
            hits=hits,
            request=request,
            prompt_tokens=await self._count_prompt(request),
            retrieval_ms=retrieval_ms,
            started=started,
            around=around,
            skill=choose_skill(skill, hits, self.skills),
            progress=progress or Progress(),
        )
        asked.progress.asked = asked
        if mode != "routed":
            route = Route(to=mode, reason="default")
            return self._conclude(asked, route, [await self._attempt_alone(mode, asked)])
        route = self._choose_route(asked, prefer_quality=prefer_quality)
        return await self._ask_along(route, asked)

    async def ask_again_as(self, answered: Answered, to: ServedBy) -> Answered:
        """Put an answered question, as it was asked, to the other side alone: the shadow's answer.

        To the student means to the students in turn, as they would have been asked.

        Raises:
            ModelError: it did not answer.
        """
        asked = Asked(
            question=answered.question,
            hits=answered.retrieved,
            request=answered.request,
            prompt_tokens=answered.prompt_tokens_estimate,
            retrieval_ms=0.0,
            started=time.perf_counter(),
            skill=choose_skill(answered.skill, (), self.skills),
        )
        if to == "teacher":
            attempts = [await self._attempt_alone(to, asked)]
        else:
            _, attempts = await self._ask_students(Route(to=to, reason="default"), asked)
        return self._conclude(asked, replace(answered.route, to=to), attempts)

    async def _count_prompt(self, request: ChatRequest) -> int:
        texts = [message["content"] for message in request.messages]
        if not self.counts_slowly:
            return sum(map(self.count_tokens, texts))
        # A real tokenizer takes milliseconds of CPU for a prompt: the event loop stays free.
        return await asyncio.to_thread(lambda: sum(map(self.count_tokens, texts)))

    def _choose_route(self, asked: Asked, *, prefer_quality: bool) -> Route:
        route = choose_route(
            prompt_tokens=asked.prompt_tokens,
            max_score=max((hit.score for hit in asked.hits), default=0.0),
            prefer_quality=prefer_quality,
            phase=self.phase if self.student else "hitchhiker",
            policy=self.router,
            is_high_stakes=asks_high_stakes(asked.skill, asked.hits, self.skills)
            or has_high_stakes(asked.question, asked.hits, self.router),
        )
        around = asked.around
        return draw_route(
            route,
            self.router,
            explore_draw=around.explore_draw,
            canary_draw=around.canary_draw,
        )

    async def _ask_along(self, route: Route, asked: Asked) -> Answered:
        """Ask the model of the route, and the next ones while no answer may be shown."""
        obstacle = await self._find_obstacle(route, asked)
        may_detour = self.student is not None and not asked.around.insists_on_teacher
        settled = detour(route, obstacle, has_student=may_detour)
        asked.progress.route = settled
        if settled.to == "teacher":
            # Around a student that is stopped lies the teacher, whose own share is counted then.
            if settled.to != route.to:
                obstacle = await self._find_obstacle(settled, asked)
            return self._conclude(asked, settled, [await self._ask_teacher(asked, obstacle)])
        settled, attempts = await self._ask_students(settled, asked)
        asked.progress.route = settled
        is_settled = is_usable(attempts[-1]) and settled.reason != "low_confidence"
        if not is_settled and settled.reason not in DETOURS:
            # Whoever chose the student, its answer is why the teacher is asked: the key pays.
            fallback = replace(settled, to="teacher", reason="default")
            obstacle = await self._find_obstacle(fallback, asked)
            attempts.append(await self._ask_teacher(asked, obstacle))
        return self._conclude(asked, settled, attempts)

    async def _ask_students(self, route: Route, asked: Asked) -> tuple[Route, list[Attempt]]:
        """Ask the students in turn until one is valid and sure enough."""
        attempts: list[Attempt] = []
        found = route
        for tier in self._list_tiers(asked):
            attempts.append(await self._attempt(tier, "student", asked))
            found = route
            if not is_usable(attempts[-1]):
                continue
            if route.reason not in DETOURS:
                threshold = tier.find_threshold(self.router)
                found = doubt_answer(route, attempts[-1].confidence, threshold)
            if found.reason != "low_confidence":
                break
        return found, attempts

    async def _find_obstacle(self, route: Route, asked: Asked) -> Obstacle | None:
        """Return why the model of a route is not asked; a call of the teacher is counted here."""
        if route.to == "student":
            is_closed = all(is_stopped(t.model) for t in self._list_tiers(asked))
            return "breaker" if is_closed else None
        if is_stopped(self.teacher):
            return "breaker"
        wait = await asked.around.allow_teacher(route.reason)
        asked.progress.budget_wait_seconds = wait or 0
        return None if wait is None else "budget"

    async def _ask_teacher(self, asked: Asked, obstacle: Obstacle | None) -> Attempt:
        """Ask the teacher; a spent budget is an attempt that made no call."""
        if obstacle == "budget":
            spent = _out_of_budget(asked.progress.budget_wait_seconds)
            failed = Attempt.failed("teacher", self.teacher.name, spent, asked)
            asked.progress.attempts.append(failed)
            return failed
        return await self._attempt(Tier(model=self.teacher), "teacher", asked)

    async def _attempt_alone(self, role: ServedBy, asked: Asked) -> Attempt:
        if role == "teacher":
            return await self._attempt(Tier(model=self.teacher), role, asked)
        if self.student is None:
            raise ValueError("the student was asked, but this pipeline has none")
        return await self._attempt(self._list_tiers(asked)[-1], role, asked)

    def _list_tiers(self, asked: Asked) -> tuple[Tier, ...]:
        return self.tiers if asked.skill is None else (asked.skill.tier,)

    async def _attempt(self, tier: Tier, role: ServedBy, asked: Asked) -> Attempt:
        """Ask one model and note it; also a call that is given up may have cost something."""
        began, name = elapsed_ms(asked.started), tier.model.name
        try:
            attempt = await self._call(tier, role, asked, began)
        except BaseException as error:
            attempt = Attempt.given_up(role, name, error, started_ms=began)
            raise
        finally:
            asked.progress.attempts.append(attempt)
        return attempt

    async def _call(self, tier: Tier, role: ServedBy, asked: Asked, began: float) -> Attempt:
        try:
            completion = await complete_for(tier.model, asked, self.prompt)
        except ModelError as error:
            return Attempt.failed(role, tier.model.name, error, asked, started_ms=began)
        draft = read_answer(completion.text, asked.hits, self.prompt)
        verdict = validate(draft, asked.hits, self.validator)
        confidence = None
        if role == "student" and verdict.is_valid and tier.calibration is not None:
            signals = read_signals(completion, asked.hits, is_refusal=draft.refused)
            confidence = estimate_confidence(signals, tier.calibration)
        return Attempt(
            role=role,
            completion=completion,
            verdict=verdict,
            model=tier.model.name,
            started_ms=began,
            confidence=confidence,
        )

    def _conclude(self, asked: Asked, route: Route, attempts: Sequence[Attempt]) -> Answered:
        raised = attempts[-1].raised
        if all(a.completion is None for a in attempts) and raised is not None:
            raise raised
        draft = DraftAnswer(text="", cited=(), refused=True)
        served = choose_server(tuple(attempts))
        if served.completion is not None and is_usable(served):
            draft = read_answer(served.completion.text, asked.hits, self.prompt)
        return Answered(
            question=asked.question,
            answer=write_refusal(asked.question) if draft.refused else draft.text,
            cited=draft.cited,
            refused=draft.refused,
            served_by=served.role,
            model=served.model,
            route=route,
            retrieved=asked.hits,
            request=asked.request,
            skill=asked.skill.name if asked.skill else None,
            attempts=tuple(attempts),
            prompt_tokens_estimate=asked.prompt_tokens,
            retrieval_ms=asked.retrieval_ms,
            total_ms=elapsed_ms(asked.started),
        )


def _out_of_budget(wait_seconds: int) -> BudgetExceededError:
    spent = BudgetExceededError(
        "asking the teacher",
        expected="a call within the teacher's budget",
        found="a budget that is used up",
        next_step="wait until it has room again, or ask the operator for a larger one",
    )
    spent.retry_after_seconds = wait_seconds
    return spent
