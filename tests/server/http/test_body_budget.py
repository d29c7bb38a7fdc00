"""The bodies of all requests together stay within a budget, which API keys share."""

import asyncio
import contextlib
from pathlib import Path

import pytest
from fastapi import HTTPException
from starlette.types import Message

from overpaint.server.http.body_budget import BodyBudget
from overpaint.server.settings import Limits
from tests.server.live import client_of


async def part() -> Message:
    return {"type": "http.request", "body": bytes(100), "more_body": True}


def receive(budget: BodyBudget, stack: contextlib.ExitStack, key: str, parts: int) -> None:
    counted = stack.enter_context(budget.count_body(key, part))

    async def read() -> None:
        for _ in range(parts):
            await counted()

    asyncio.run(read())


def test_body_budget_refuses_bodies_beyond_it_and_counts_no_answered_ones() -> None:
    budget = BodyBudget(1000)
    with contextlib.ExitStack() as stack:
        receive(budget, stack, "a", 10)
        with pytest.raises(HTTPException, match="503"):
            receive(budget, stack, "a", 1)
    with contextlib.ExitStack() as stack:
        receive(budget, stack, "a", 10)


def test_body_budget_that_one_key_uses_up_has_room_for_others() -> None:
    budget = BodyBudget(1000)
    with contextlib.ExitStack() as stack:
        receive(budget, stack, "greedy", 10)
        receive(budget, stack, "other", 5)
        for key in ("other", "greedy"):
            with pytest.raises(HTTPException, match="503"):
                receive(budget, stack, key, 1)
        receive(budget, stack, "third", 3)


def test_request_beyond_the_body_budget_is_answered_503(tmp_path: Path) -> None:
    with client_of(tmp_path, limits=Limits(pending_body_bytes=1000)) as client:
        body = {"request": {"prompt": "a" * 2000}}
        answer = client.post("/api/jobs", json=body)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
        assert client.post("/api/jobs", json={"request": {"prompt": "a"}}).status_code == 201
