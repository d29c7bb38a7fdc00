"""The bodies of all requests together stay within a budget, which API keys share."""

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from fastapi import HTTPException
from starlette.types import Message

from overpaint.server.http.request_budget import RequestBudget
from overpaint.server.settings import HttpSettings, Limits
from tests.server.live import client_of, until


async def part() -> Message:
    return {"type": "http.request", "body": bytes(100), "more_body": True}


def receive(budget: RequestBudget, stack: contextlib.ExitStack, key: str, parts: int) -> None:
    counted = stack.enter_context(budget.count_request(key, part))

    async def read() -> None:
        for _ in range(parts):
            await counted()

    asyncio.run(read())


def test_request_budget_refuses_bodies_beyond_it_and_counts_no_answered_ones() -> None:
    budget = RequestBudget(1000)
    with contextlib.ExitStack() as stack:
        receive(budget, stack, "a", 10)
        with pytest.raises(HTTPException, match="503"):
            receive(budget, stack, "a", 1)
    with contextlib.ExitStack() as stack:
        receive(budget, stack, "a", 10)


def test_request_budget_that_one_key_uses_up_has_room_for_others() -> None:
    budget = RequestBudget(1000)
    with contextlib.ExitStack() as stack:
        receive(budget, stack, "greedy", 10)
        receive(budget, stack, "other", 5)
        for key in ("other", "greedy"):
            with pytest.raises(HTTPException, match="503"):
                receive(budget, stack, key, 1)
        receive(budget, stack, "third", 3)


def test_request_budget_bounds_the_requests_of_one_key() -> None:
    budget = RequestBudget(1000, 2)
    with contextlib.ExitStack() as stack:
        for key in ("a", "a", "b"):
            receive(budget, stack, key, 0)
        with pytest.raises(HTTPException, match="429"):
            receive(budget, stack, "a", 0)
    with contextlib.ExitStack() as stack:
        receive(budget, stack, "a", 0)


def test_requests_of_one_key_that_wait_leave_connections_to_others(tmp_path: Path) -> None:
    http = HttpSettings(max_connections=4)
    with client_of(tmp_path, 0.05, http=http) as client, ThreadPoolExecutor(2) as waiting:
        slow = {"request": {"num_inference_steps": 1000}}
        ask = partial(client.post, "/api/jobs?wait=60", json=slow)
        held = [waiting.submit(ask) for _ in range(2)]
        until(lambda: len(client.get("/api/jobs").json()["jobs"]) == 2)
        assert client.post("/api/jobs", json=slow).status_code == 429
        for job in client.get("/api/jobs").json()["jobs"]:
            client.post(f"/api/jobs/{job['id']}/cancel")
        assert {answer.result().status_code for answer in held} == {201}
        assert client.post("/api/jobs", json=slow).status_code == 201


def test_request_beyond_the_request_budget_is_answered_503(tmp_path: Path) -> None:
    with client_of(tmp_path, limits=Limits(pending_body_bytes=1000)) as client:
        body = {"request": {"prompt": "a" * 2000}}
        answer = client.post("/api/jobs", json=body)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
        assert client.post("/api/jobs", json={"request": {"prompt": "a"}}).status_code == 201
