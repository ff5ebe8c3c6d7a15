"""What goes to an OTLP collector of each question: its spans, and measures of its model calls.

Made from the trace record once it is whole, so the request path knows nothing of it. Belongs here:
connecting, and handing on. Does not belong here: from a record to spans (`spans`) or to measures
(`call_metrics`), the server's own counters (`serving/metrics`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from serving.errors import InvalidInputError
from serving.pipeline.answered import Attempt
from serving.tracing.call_metrics import CallMetrics
from serving.tracing.record import TraceRecord
from serving.tracing.spans import SpanExport

TRACES_PATH, METRICS_PATH = "/v1/traces", "/v1/metrics"
TIMEOUT_SECONDS = 5


@dataclass(frozen=True, kw_only=True)
class OtlpExport:
    """Sends in the background; nothing waits for it, and a collector that is away costs nothing."""

    spans: SpanExport
    metrics: CallMetrics

    def export(self, record: TraceRecord, attempts: Sequence[Attempt]) -> None:
        """Hand on what is known of a question whose record is made from these attempts."""
        self.spans.export(record)
        self.metrics.measure(record, attempts)

    def close(self) -> None:
        """Send what waits; takes as long as both timeouts at most."""
        self.spans.close()
        self.metrics.close()


def require_otlp() -> None:
    """Refuse to go on without what exports.

    Raises:
        InvalidInputError: the extra `otel` is not installed.
    """
    try:
        import opentelemetry.exporter.otlp.proto.http.metric_exporter
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError:
        raise InvalidInputError(
            "exporting spans and metrics",
            expected="the OpenTelemetry SDK and its OTLP exporter",
            found="no such packages",
            next_step="install the extra: `pip install 'understudy-serving[otel]'`, or unset the "
            "OTLP endpoint",
        ) from None


def connect_otlp(endpoint: str) -> OtlpExport:
    """Return the export to an OTLP/HTTP collector.

    Args:
        endpoint: where spans go; measures go beside it, to /v1/metrics where it ends in /v1/traces.

    Raises:
        InvalidInputError: the extra `otel` is not installed.
    """
    require_otlp()
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    beside = endpoint.rstrip("/").removesuffix(TRACES_PATH) + METRICS_PATH
    spans = OTLPSpanExporter(endpoint=endpoint, timeout=TIMEOUT_SECONDS)
    metrics = OTLPMetricExporter(endpoint=beside, timeout=TIMEOUT_SECONDS)
    return OtlpExport(
        spans=SpanExport(BatchSpanProcessor(spans)),
        metrics=CallMetrics(PeriodicExportingMetricReader(metrics)),
    )
