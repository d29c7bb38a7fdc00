"""Clients that follow jobs are counted by every route that lets them wait."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.dependencies.models import Dependant
from fastapi.testclient import TestClient

from overpaint.server.api.deps import offer_listener_count
from overpaint.server.settings import Limits
from tests.server.live import client_of

BRIEF = {"prompt": "a", "num_inference_steps": 1}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A server that lets nobody follow jobs."""
    limits = Limits(event_streams_per_key=0)
    with client_of(tmp_path_factory.mktemp("data"), limits=limits) as made:
        yield made


def list_routes(routes: Any) -> Iterator[Any]:
    for route in routes:
        if inner := getattr(route, "original_router", None):
            yield from list_routes(inner.routes)
        elif hasattr(route, "dependant"):
            yield route


def counts_listeners(dependant: Dependant) -> bool:
    return dependant.call is offer_listener_count or any(
        map(counts_listeners, dependant.dependencies)
    )


def test_every_route_with_an_event_stream_counts_its_listeners(client: TestClient) -> None:
    app: Any = client.app
    streams = [
        route
        for route in list_routes(app.routes)
        if "text/event-stream" in route.responses.get(200, {}).get("content", {})
    ]
    assert len(streams) >= 7
    assert [route.path for route in streams if not counts_listeners(route.dependant)] == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/images/generations", {"prompt": "a", "steps": 1}),
        ("/fal/run/o/m", BRIEF),
    ],
)
def test_stream_beyond_the_limit_is_refused_before_a_job_is_accepted(
    client: TestClient, path: str, body: dict[str, Any]
) -> None:
    assert client.post(path, json=body).status_code == 200
    before = client.get("/api/jobs").json()
    stream = f"{path}/stream" if "fal" in path else path
    answer = client.post(stream, json=body | {"stream": True})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
    assert client.get("/api/jobs").json() == before


def test_wait_for_a_job_beyond_the_limit_is_refused(client: TestClient) -> None:
    path = f"/api/jobs/{client.post('/api/jobs', json={'request': BRIEF}).json()['id']}"
    assert client.get(path).status_code == 200
    assert client.get(f"{path}?wait=60").status_code == 429
