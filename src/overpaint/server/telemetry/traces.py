"""OpenTelemetry traces of every request, and of every job from its acceptance to its end.

The server records a job's spans after its end, from its history in the job store. So the trace is
complete even if servers were killed or another server ran the job.
"""

from collections.abc import Sequence
from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from overpaint.server.store.job_rows import ENDED, HistoryEntry, Job
from overpaint.server.telemetry.logs import KEY_LABEL_CHARS

TRACE_CONTEXT = TraceContextTextMapPropagator()
"""Reads and writes the headers `traceparent` and `tracestate` (W3C Trace Context)."""

SPAN_BY_EVENT = {"queued": "queued", "requeued": "queued", "started": "running"}
"""Names of the spans within a job's span, by the event in its history that begins them."""


class TraceExporter:
    """Sends spans to a processor. Any thread may call its methods."""

    def __init__(self, processor: SpanProcessor):
        """Use a span processor.

        Args:
            processor: receives the spans that have ended.
        """
        named = Resource({"service.name": "overpaint"}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=Resource.create().merge(named))
        self._provider.add_span_processor(processor)
        self.tracer = self._provider.get_tracer("overpaint", version("overpaint"))

    def close(self) -> None:
        """Send the remaining spans."""
        self._provider.shutdown()

    def current_context(self) -> dict[str, str]:
        """Return the current span as headers, which the job stores."""
        carrier = dict[str, str]()
        TRACE_CONTEXT.inject(carrier)
        return carrier

    def record_job(self, job: Job, history: Sequence[HistoryEntry]) -> None:
        """Record the spans of a job that has ended, below the span of the request that made it.

        Args:
            job: the job in its final state.
            history: all events of the job.
        """
        began, ended = history[0].at, history[-1].at
        parent = TRACE_CONTEXT.extract(job.origin.trace)
        attributes = {
            "overpaint.job.id": job.id,
            "overpaint.job.state": job.state,
            "overpaint.job.attempt": job.attempt,
            "overpaint.key": job.key[:KEY_LABEL_CHARS],
            "overpaint.model": job.model,
            "overpaint.pictures": job.request.get("num_images", 1),
            "overpaint.request.id": job.origin.request_id or "",
        }
        whole = self.tracer.start_span(
            "job", parent, attributes=attributes, start_time=_nanoseconds(began)
        )
        if job.state == "failed":
            whole.set_status(StatusCode.ERROR)  # The job's error may quote the request.
        phase: Span | None = None
        for said in history:
            if said.kind not in (*SPAN_BY_EVENT, *ENDED):
                continue
            if phase:
                phase.end(_nanoseconds(said.at))
            if said.kind in SPAN_BY_EVENT:
                phase = self.tracer.start_span(
                    SPAN_BY_EVENT[said.kind],
                    set_span_in_context(whole, parent),
                    attributes={f"overpaint.job.{name}": said.body[name] for name in said.body},
                    start_time=_nanoseconds(said.at),
                )
        whole.end(_nanoseconds(ended))


def make_otlp_exporter() -> TraceExporter:
    """Make an exporter that sends spans by OTLP over HTTP, as the `OTEL_…` variables configure."""
    return TraceExporter(BatchSpanProcessor(OTLPSpanExporter()))


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
