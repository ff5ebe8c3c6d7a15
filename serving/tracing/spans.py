"""Spans of answered questions in OpenTelemetry's GenAI conventions.

What was scrubbed in the trace record is scrubbed here: no question and no answer is sent. Belongs
here: from a record to spans. Does not belong here: records (`record`), measures (`call_metrics`),
where they are sent (`otlp`), what is persisted (`segments`).
"""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from serving.tracing.record import TracedAttempt, TraceRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

SERVICE = "understudy"
_NANOSECONDS_PER_MS = 1_000_000


class SpanExport:
    """Hands spans to a processor, which sends them in the background; nothing waits for it."""

    def __init__(self, processor: "SpanProcessor") -> None:
        """Export through `processor`. The extra `otel` is installed."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        self._provider = TracerProvider(resource=Resource({"service.name": SERVICE}))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(SERVICE)

    def export(self, record: TraceRecord) -> None:
        """Send a question's span, and one for each model that was asked."""
        from opentelemetry import trace
        from opentelemetry.trace import SpanKind, Status, StatusCode

        began = _read_nanoseconds(record.asked_at)
        root = self._tracer.start_span(
            "ask", start_time=began, kind=SpanKind.SERVER, attributes=describe_question(record)
        )
        inside = trace.set_span_in_context(root)
        for attempt in record.attempts:
            start = began + int(attempt.started_ms * _NANOSECONDS_PER_MS)
            span = self._tracer.start_span(
                f"chat {attempt.model}",
                context=inside,
                start_time=start,
                kind=SpanKind.CLIENT,
                attributes=describe_call(attempt),
            )
            if attempt.error:
                span.set_status(Status(StatusCode.ERROR, attempt.error))
            span.end(start + int(attempt.latency_ms * _NANOSECONDS_PER_MS))
        if record.outcome != "answered":
            root.set_status(Status(StatusCode.ERROR, record.outcome))
        root.end(began + int(record.total_latency_ms * _NANOSECONDS_PER_MS))

    def close(self) -> None:
        """Send what waits; takes as long as the processor's timeout at most."""
        self._provider.shutdown()


def describe_question(record: TraceRecord) -> Mapping[str, Any]:
    """Return the attributes of a question's span."""
    return _drop_unknown(
        {
            "understudy.trace_id": record.trace_id,
            "understudy.release": record.release_id,
            "understudy.phase": record.phase,
            "understudy.route": record.route,
            "understudy.route_reason": record.route_reason,
            "understudy.selection_mode": record.selection_mode,
            "understudy.served_by": record.served_by,
            "understudy.outcome": record.outcome,
            "understudy.refused": record.refused,
            "understudy.retrieved_count": len(record.retrieved),
            "understudy.max_score": record.max_score,
            "understudy.cost_usd": record.cost_usd,
            "gen_ai.conversation.id": record.conversation_id,
            "deployment.environment.name": record.env,
        }
    )


def describe_call(attempt: TracedAttempt) -> Mapping[str, Any]:
    """Return the attributes of one model call, as the GenAI conventions name them."""
    reason = attempt.finish_reason
    first_token = attempt.first_token_ms
    return _drop_unknown(
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": SERVICE,
            "gen_ai.request.model": attempt.model,
            "gen_ai.response.model": attempt.model,
            "gen_ai.usage.input_tokens": attempt.prompt_tokens,
            "gen_ai.usage.output_tokens": attempt.completion_tokens,
            "gen_ai.response.finish_reasons": [reason] if reason else None,
            "gen_ai.response.time_to_first_chunk": None
            if first_token is None
            else first_token / 1000,
            "error.type": "model_error" if attempt.error else None,
            "understudy.role": attempt.role,
            "understudy.verdict": attempt.verdict,
            "understudy.cost_usd": attempt.cost_usd,
            "understudy.queue_ms": attempt.queue_ms,
            "understudy.cold_start": attempt.cold_start,
        }
    )


def _drop_unknown(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def _read_nanoseconds(written: str) -> int:
    return int(datetime.fromisoformat(written).timestamp() * 1000) * _NANOSECONDS_PER_MS
