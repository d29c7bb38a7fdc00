"""`GET /metrics` in the text format of Prometheus.

Counters of the worker start at 0 when the worker is replaced. Prometheus handles that in `rate` and
`increase`.
"""

from collections.abc import Iterator, Mapping

from fastapi import APIRouter, Response
from fastapi import Request as Incoming
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from overpaint.engine.counters import Counters
from overpaint.engine.profile import MOST
from overpaint.server.api.deps import ServiceDep
from overpaint.server.http.auth import MetricsAccessDep
from overpaint.server.http.counting import ResponseCounts
from overpaint.server.jobs.service import Service

router = APIRouter(tags=["health"])

BUCKETS = tuple(2**power for power in range(MOST.bit_length()))
"""Upper bounds of the histogram of rows: 1, 2, 4 … up to the largest batch."""


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(incoming: Incoming, service: ServiceDep, access: MetricsAccessDep) -> Response:
    """Return the metrics of the server in the text format of Prometheus."""
    registry = CollectorRegistry()
    registry.register(ServiceCollector(service, incoming.app.state.answers))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class ServiceCollector(Collector):
    """Reads the state of the service when Prometheus collects it."""

    def __init__(self, service: Service, answers: ResponseCounts):
        self._service = service
        self._answers = answers

    def collect(self) -> Iterator[Metric]:
        """Return all metrics.

        Raises:
            SQLAlchemyError: the job store is not available.
        """
        yield from self._jobs()
        yield from _steps(self._service.supervisor.counters)
        answers = self._answers
        answered = {str(status): count for status, count in answers.responses.copy().items()}
        yield _counters("overpaint_http_responses", "HTTP responses.", "status", answered)
        refused = dict[str, float](answers.rejections)
        yield _counters("overpaint_rejections", "Rejected requests for work.", "reason", refused)

    def _jobs(self) -> Iterator[Metric]:
        jobs, supervisor = self._service.jobs, self._service.supervisor
        counted = dict[str, float](jobs.count_by_state().items())
        yield _gauges("overpaint_jobs", "Jobs in the job store.", "state", counted)
        work, waited = jobs.get_backlog()
        yield GaugeMetricFamily(
            "overpaint_queue_work_seconds", "Estimated work of queued jobs.", work
        )
        yield GaugeMetricFamily(
            "overpaint_queue_wait_seconds", "Waiting time of the oldest queued job.", waited
        )
        ended = dict(supervisor.ended)
        yield _counters("overpaint_jobs_ended", "Jobs that ended on this server.", "state", ended)
        made, what = dict(supervisor.pictures), "Pictures of jobs that ended on this server."
        yield _counters("overpaint_pictures", what, "fate", made)
        posts = self._service.outbox.count_by_state()
        yield _gauges("overpaint_webhooks", "Webhooks in the job store.", "state", posts)
        yield CounterMetricFamily(
            "overpaint_worker_restarts", "Replaced workers.", supervisor.restarts
        )
        yield GaugeMetricFamily(
            "overpaint_worker_ready",
            "1 if the worker accepts jobs, otherwise 0.",
            float(supervisor.ready),
        )
        yield GaugeMetricFamily(
            "overpaint_worker_jobs", "Jobs that this server runs.", supervisor.held
        )


def _steps(counters: Counters) -> Iterator[Metric]:
    """Return the counters of the worker's engine."""
    within = [
        (str(float(bound)), sum(calls for rows, calls in counters.batches.items() if rows <= bound))
        for bound in BUCKETS
    ]
    yield HistogramMetricFamily(
        "overpaint_step_rows",
        "Rows per step. A step is one call of the network.",
        buckets=[*within, ("+Inf", counters.steps)],
        sum_value=counters.rows,
    )
    yield CounterMetricFamily(
        "overpaint_step_seconds", "Time spent in steps.", counters.step_seconds
    )
    yield CounterMetricFamily(
        "overpaint_step_halvings",
        "Steps that were split because memory ran out.",
        counters.halvings,
    )
    yield _counters("overpaint_cache_hits", "Values found in the cache.", "kind", counters.hits)
    yield _counters(
        "overpaint_cache_misses", "Values not found in the cache.", "kind", counters.misses
    )
    yield GaugeMetricFamily("overpaint_cache_bytes", "Size of the cache.", counters.cache_bytes)
    there = dict.fromkeys(counters.resident, 1)
    yield _gauges("overpaint_model_resident", "Models in memory.", "model", there)


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=(label,))
    for value in sorted(values):
        family.add_metric((value,), values[value])
    return family


def _counters(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=(label,))
    for value in sorted(values):
        family.add_metric((value,), values[value])
    return family
