"""Measures of model calls in OpenTelemetry's GenAI conventions: how long, and how many tokens.

Belongs here: from a record to the two histograms that the conventions name. Does not belong here:
spans (`spans`), where they are sent (`otlp`), the server's own counters (`serving/metrics`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from serving.pipeline.answered import Attempt
from serving.tracing.record import TracedAttempt, TraceRecord
from serving.tracing.spans import SERVICE

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricReader

# The boundaries that the conventions advise: doublings of 10 ms, and powers of 4 of a token.
SECONDS = tuple(0.01 * 2**power for power in range(14))
TOKENS = tuple(float(4**power) for power in range(14))


class CallMetrics:
    """Measures the calls of each question for a reader, which sends them in the background."""

    def __init__(self, reader: "MetricReader") -> None:
        """Measure for `reader`. The extra `otel` is installed."""
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.resources import Resource

        self._provider = MeterProvider([reader], Resource({"service.name": SERVICE}))
        meter = self._provider.get_meter(SERVICE)
        self._seconds = meter.create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="Time from asking a model to its whole answer or its failure.",
            explicit_bucket_boundaries_advisory=SECONDS,
        )
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Tokens of one call, by gen_ai.token.type.",
            explicit_bucket_boundaries_advisory=TOKENS,
        )

    def measure(self, record: TraceRecord, attempts: Sequence[Attempt]) -> None:
        """Measure each call made for a question, also one that failed.

        What never reached a model is no call: a refusal by rule, a spent budget, an open breaker.

        Args:
            record: of the question.
            attempts: those the record is of; it does not keep whether one was a call.
        """
        for attempt, made in zip(record.attempts, attempts, strict=True):
            is_by_rule = attempt.prompt_tokens == 0
            if is_by_rule or not made.was_called:
                continue
            called = _name_call(attempt)
            failed = {"error.type": "model_error"} if attempt.error else {}
            self._seconds.record(attempt.latency_ms / 1000, called | failed)
            for kind, count in (
                ("input", attempt.prompt_tokens),
                ("output", attempt.completion_tokens),
            ):
                if count:
                    self._tokens.record(count, called | {"gen_ai.token.type": kind})

    def close(self) -> None:
        """Send what waits; takes as long as the exporter's timeout at most."""
        self._provider.shutdown()


def _name_call(attempt: TracedAttempt) -> dict[str, str]:
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": SERVICE,
        "gen_ai.request.model": attempt.model,
        "gen_ai.response.model": attempt.model,
        "understudy.role": attempt.role,
    }
