"""Metrics in the Prometheus format: what an operator's alarms look at.

One registry per app, so that tests and several servers in a process never share counts. Labels have
few values; nothing a user typed is one. Belongs here: names, units, what feeds them. Does not
belong here: who may read them (`app`), traces (`tracing`).
"""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.pipeline.answered import Answered, Attempt
from serving.releases.live import LiveRelease
from serving.tracing.segments import SegmentWriter

LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class ServerMetrics:
    """Counts of one server since it started. Durations are in seconds, cost in US dollars."""

    def __init__(self, traces: SegmentWriter, live: LiveRelease) -> None:
        """Register everything; what the writer and the release know is read when asked."""
        self._registry = CollectorRegistry()
        self._asked = Counter(
            "understudy_asks",
            "Questions by outcome: answered, refused, or the problem the user was shown.",
            ("outcome",),
            registry=self._registry,
        )
        self._served = Counter(
            "understudy_answers",
            "Answers and refusals by the model that wrote them and the reason of the route.",
            ("served_by", "route_reason"),
            registry=self._registry,
        )
        self._skills = Counter(
            "understudy_skill_answers",
            "Answers and refusals to questions for a skill, by the model that wrote them.",
            ("skill", "served_by"),
            registry=self._registry,
        )
        self._fallbacks = Counter(
            "understudy_fallbacks",
            "Student attempts that the teacher replaced, by what was wrong with them.",
            ("verdict",),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "understudy_ask_seconds",
            "Time from the question's arrival to its answer, or to its problem (`none`).",
            ("served_by",),
            buckets=LATENCY_BUCKETS,
            registry=self._registry,
        )
        self._cost = Counter(
            "understudy_cost_usd",
            "What models cost, by role; a wasted student attempt counts.",
            ("role",),
            registry=self._registry,
        )
        self._feedback = Counter(
            "understudy_feedback",
            "Feedback stored, by rating.",
            ("rating",),
            registry=self._registry,
        )
        self._shadows = Counter(
            "understudy_shadows",
            "Questions drawn for the shadow, by what became of them.",
            ("outcome",),
            registry=self._registry,
        )
        self._shadow_answered_at = Gauge(
            "understudy_shadow_answered_at_seconds",
            "Unix time of the shadow's last answer: one that stands still is a dead mirror.",
            registry=self._registry,
        )
        self.in_flight = Gauge(
            "understudy_asks_in_flight", "Questions being answered.", registry=self._registry
        )
        self.is_ready = Gauge(
            "understudy_ready", "1 while /ask takes questions.", registry=self._registry
        )
        self.keys_stale = Gauge(
            "understudy_keys_stale",
            "1 while the key file cannot be read: a key revoked since then is still taken.",
            registry=self._registry,
        )
        Gauge(
            "understudy_release_refused",
            "1 while CURRENT names a release that cannot be loaded.",
            registry=self._registry,
        ).set_function(lambda: float(live.failure is not None))
        self._registry.register(_TraceCounts(traces))
        self._registry.register(_ReleaseInForce(live))
        self._registry.register(_Breakers(live))

    def count_answer(self, answered: Answered) -> None:
        """Count an answer or refusal and what its attempts cost."""
        self._asked.labels("refused" if answered.refused else "answered").inc()
        self._served.labels(answered.served_by, answered.route.reason).inc()
        if answered.skill is not None:
            self._skills.labels(answered.skill, answered.served_by).inc()
        self._seconds.labels(answered.served_by).observe(answered.total_ms / 1000)
        self._count_costs(answered.attempts)
        if answered.used_fallback and answered.served_by == "teacher":
            is_doubted = answered.route.reason == "low_confidence"
            verdict = (
                "low_confidence" if is_doubted else str(answered.attempts[0].verdict or "error")
            )
            self._fallbacks.labels(verdict).inc()

    def count_shadow(self, outcome: str, *, cost_usd: float = 0.0, now: float = 0.0) -> None:
        """Count a shadow; `now` is when it answered."""
        self._shadows.labels(outcome).inc()
        if outcome == "answered":
            self._cost.labels("shadow").inc(cost_usd)
            self._shadow_answered_at.set(now)

    def count_problem(self, name: str, attempts: Sequence[Attempt] = (), *, seconds: float) -> None:
        """Count a question that ended in a problem document, and what its attempts cost.

        `seconds` is how long its reader waited: without it, answers that only time out look fast.
        """
        self._asked.labels(name).inc()
        self._seconds.labels("none").observe(seconds)
        self._count_costs(attempts)

    def _count_costs(self, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            if attempt.completion:
                self._cost.labels(attempt.role).inc(attempt.completion.cost_usd)

    def count_feedback(self, rating: str) -> None:
        """Count stored feedback."""
        self._feedback.labels(rating).inc()

    def render(self) -> bytes:
        """Return all of them in the text exposition format."""
        return generate_latest(self._registry)


class _TraceCounts(Collector):
    """The writer's own counts: asked = stored + lost, without a second tally."""

    def __init__(self, traces: SegmentWriter) -> None:
        self._traces = traces

    def collect(self) -> list[Metric]:
        """Return the counts of this moment."""
        family = CounterMetricFamily(
            "understudy_traces", "Traces by what became of them.", labels=("outcome",)
        )
        family.add_metric(("stored",), self._traces.stored_count)
        family.add_metric(("lost",), self._traces.lost_count)
        return [family]


class _ReleaseInForce(Collector):
    """Which release serves, as a label, and how often another one took over."""

    def __init__(self, live: LiveRelease) -> None:
        self._live = live

    def collect(self) -> list[Metric]:
        """Return the release of this moment."""
        engine = self._live.engine
        info = GaugeMetricFamily(
            "understudy_release", "1 for the release in force.", labels=("release", "phase")
        )
        info.add_metric((engine.release_id, engine.phase), 1)
        swaps = CounterMetricFamily("understudy_release_swaps", "Releases swapped in.")
        swaps.add_metric((), self._live.swap_count)
        return [info, swaps]


class _Breakers(Collector):
    """The breakers of the release in force, by model."""

    def __init__(self, live: LiveRelease) -> None:
        self._live = live

    def collect(self) -> list[Metric]:
        """Return their state of this moment."""
        stopped = GaugeMetricFamily(
            "understudy_breaker_open", "1 while a model is left alone.", labels=("model",)
        )
        opened = CounterMetricFamily(
            "understudy_breaker_openings", "How often a model's breaker opened.", labels=("model",)
        )
        pipeline = self._live.engine.pipeline
        tiers = (*pipeline.tiers, *(skill.tier for skill in pipeline.skills))
        # By name: two skills may share a student, and a series stands once.
        models = {m.name: m for m in (pipeline.teacher, *(tier.model for tier in tiers))}
        for model in models.values():
            breaker = getattr(model, "breaker", None)
            if breaker is not None:
                stopped.add_metric((model.name,), float(breaker.state != "closed"))
                opened.add_metric((model.name,), breaker.opened_count)
        return [stopped, opened]
