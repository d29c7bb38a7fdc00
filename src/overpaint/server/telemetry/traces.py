"""Traces by OpenTelemetry: of every request, and of every job from its acceptance to its end.

A job's spans are made when it has ended, of its history in the store. So its trace is whole, also
where servers were killed meanwhile or another one ended it.
"""

from collections.abc import Sequence
from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from overpaint.server.store.jobs import ENDED, Job, Said
from overpaint.server.telemetry.logs import KEY_LABEL_CHARS

TRACE_CONTEXT = TraceContextTextMapPropagator()
"""Reads and writes `traceparent` and `tracestate`."""

SPAN_BY_EVENT = {"queued": "queued", "requeued": "queued", "started": "running"}
"""Spans within a job's, by what in its history they begin with."""


class TraceExporter:
    """Where spans go. Its methods may be called from any thread."""

    def __init__(self, processor: SpanProcessor):
        """Send spans on.

        Args:
            processor: what is done with those that have ended.
        """
        named = Resource({"service.name": "overpaint"}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=Resource.create().merge(named))
        self._provider.add_span_processor(processor)
        self.tracer = self._provider.get_tracer("overpaint", version("overpaint"))

    def close(self) -> None:
        """Send what has not been sent."""
        self._provider.shutdown()

    def current_context(self) -> dict[str, str]:
        """The span that is under way here, as jobs keep it."""
        carrier = dict[str, str]()
        TRACE_CONTEXT.inject(carrier)
        return carrier

    def record_job(self, job: Job, history: Sequence[Said]) -> None:
        """Tell of a job that has ended, under the span that it was accepted in.

        Args:
            job: as it ended.
            history: all of it.
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
            whole.set_status(StatusCode.ERROR)  # why may quote what was asked for
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
    """Traces that are posted, by OTLP over HTTP, to where the `OTEL_…` variables say."""
    return TraceExporter(BatchSpanProcessor(OTLPSpanExporter()))


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
