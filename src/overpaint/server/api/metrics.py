"""`GET /metrics`, in Prometheus' text format: the state of the service as it is when it is asked.

What a worker has done counts from its start, so that these counters fall to 0 when it is replaced;
Prometheus' `rate` and `increase` know that.
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
from overpaint.server.http.auth import KeyDep
from overpaint.server.http.counting import ResponseCounts
from overpaint.server.jobs.service import Service

router = APIRouter(tags=["health"])

BUCKETS = tuple(2**power for power in range(MOST.bit_length()))
"""Upper bounds of the histogram of rows: 1, 2, 4 … up to what a step may have."""


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(incoming: Incoming, service: ServiceDep, key: KeyDep) -> Response:
    """What the service has done and holds, for Prometheus."""
    registry = CollectorRegistry()
    registry.register(ServiceCollector(service, incoming.app.state.answers))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class ServiceCollector(Collector):
    """Reads the service when it is collected."""

    def __init__(self, service: Service, answers: ResponseCounts):
        self._service = service
        self._answers = answers

    def collect(self) -> Iterator[Metric]:
        """All metrics, as they are now.

        Raises:
            SQLAlchemyError: the job store is out of order.
        """
        yield from self._jobs()
        yield from _steps(self._service.supervisor.counters)
        answers = self._answers
        answered = {str(status): count for status, count in answers.responses.copy().items()}
        yield _counters("overpaint_http_responses", "Answers over HTTP.", "status", answered)
        refused = dict[str, float](answers.rejections)
        yield _counters("overpaint_rejections", "Requests for work refused.", "reason", refused)

    def _jobs(self) -> Iterator[Metric]:
        jobs, supervisor = self._service.jobs, self._service.supervisor
        counted = dict[str, float](jobs.counts().items())
        yield _gauges("overpaint_jobs", "Jobs in the store.", "state", counted)
        work, waited = jobs.backlog()
        yield GaugeMetricFamily(
            "overpaint_queue_work_seconds", "Work that is queued, as it is estimated.", work
        )
        yield GaugeMetricFamily(
            "overpaint_queue_wait_seconds", "How long the oldest queued job has been there.", waited
        )
        ended = dict(supervisor.ended)
        yield _counters("overpaint_jobs_ended", "Jobs that this server ended.", "state", ended)
        made, what = dict(supervisor.pictures), "Pictures of jobs that this server ended."
        yield _counters("overpaint_pictures", what, "fate", made)
        posts = self._service.outbox.counts()
        yield _gauges("overpaint_webhooks", "Webhooks in the store.", "state", posts)
        yield CounterMetricFamily(
            "overpaint_worker_restarts", "Workers that were replaced.", supervisor.restarts
        )
        yield GaugeMetricFamily(
            "overpaint_worker_ready", "Whether the worker takes jobs.", float(supervisor.ready)
        )
        yield GaugeMetricFamily(
            "overpaint_worker_jobs", "Jobs that are under way here.", supervisor.held
        )


def _steps(counters: Counters) -> Iterator[Metric]:
    """What the worker's engine has counted."""
    within = [
        (str(float(bound)), sum(calls for rows, calls in counters.batches.items() if rows <= bound))
        for bound in BUCKETS
    ]
    yield HistogramMetricFamily(
        "overpaint_step_rows",
        "Rows of a step, which is one call of the network.",
        buckets=[*within, ("+Inf", counters.steps)],
        sum_value=counters.rows,
    )
    yield CounterMetricFamily(
        "overpaint_step_seconds", "Time that steps took.", counters.step_seconds
    )
    yield CounterMetricFamily(
        "overpaint_step_halvings", "Steps that were halved for memory.", counters.halvings
    )
    yield _counters(
        "overpaint_cache_hits", "Results kept from earlier requests.", "kind", counters.hits
    )
    yield _counters(
        "overpaint_cache_misses", "Results that had to be made.", "kind", counters.misses
    )
    yield GaugeMetricFamily("overpaint_cache_bytes", "Results that are kept.", counters.cache_bytes)
    there = dict.fromkeys(counters.resident, 1)
    yield _gauges("overpaint_model_resident", "Models that are in memory.", "model", there)


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
