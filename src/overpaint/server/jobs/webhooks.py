"""Posts what happens to jobs to where their clients want it, signed, until it has arrived.

Standard Webhooks 1.0.0 (https://www.standardwebhooks.com), as Replicate signs: `webhook-id` is the
same over all tries, `webhook-signature` is `v1,` and the base64 of the HMAC-SHA256 of
`id.timestamp.body`. Any 2xx is an arrival; 410 says that the receiver is gone; a redirect is not
followed. A post may arrive twice, as after a server died in the middle of it.
"""

import asyncio
import contextlib
import json
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx2
from standardwebhooks import Webhook

from overpaint.errors import RequestError
from overpaint.server.jobs.service import Service
from overpaint.server.outbound.addresses import Reach
from overpaint.server.outbound.client import open_response
from overpaint.server.settings import WebhookSettings
from overpaint.server.store.jobs import Job
from overpaint.server.store.outbox import Delivery, Post
from overpaint.server.telemetry.logs import job_log_fields, log_and_continue, log_event

MakePayload = Callable[[Service, Job], Awaitable[dict[str, Any]]]
"""What is posted of a job, in the words of the wire format that it came by."""

GONE = 410


class Courier:
    """Posts the webhooks of a running server."""

    def __init__(self, service: Service, bodies: Mapping[str, MakePayload]):
        """Nothing is posted before `posting`.

        Args:
            service: whose jobs it tells of.
            bodies: by the wire format that a job came by.
        """
        self._service = service
        self._bodies = bodies
        self._settings: WebhookSettings = service.settings.webhooks
        self._under_way = dict[asyncio.Task[None], Post]()

    @asynccontextmanager
    async def posting(self) -> AsyncGenerator[None]:
        """Post while in here, and what is due at the end."""
        going = asyncio.create_task(self._go())
        try:
            yield
        finally:
            going.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await going
            with log_and_continue():
                await self._look()
            if self._under_way:
                await asyncio.wait(self._under_way)

    async def _go(self) -> None:
        while True:
            with log_and_continue():
                await self._look()
            await asyncio.sleep(self._settings.poll_interval_s)

    async def _look(self) -> None:
        """Begin to post what is due."""
        outbox = self._service.outbox
        await asyncio.to_thread(outbox.go_on, self._service.hub.moved())
        if free := self._settings.concurrent_deliveries - len(self._under_way):
            posts = Counter(post.key for post in self._under_way.values())
            for post in await asyncio.to_thread(outbox.take, free, self._settings.lease_s, posts):
                task = asyncio.create_task(self._post(post))
                self._under_way[task] = post
                task.add_done_callback(self._under_way.pop)

    async def _post(self, post: Post) -> None:
        with log_and_continue():  # it is posted again once its lease has run out
            job = await asyncio.to_thread(self._service.jobs.get, post.job)
            if job is None or job.webhook is None:
                return
            told = await self._bodies[job.origin.dialect](self._service, as_told(job, post.kind))
            secret = await asyncio.to_thread(self._service.outbox.secret, job.key)
            content = await asyncio.to_thread(lambda: json.dumps(told).encode())  # it has pictures
            name = f"{job.id}.{post.kind}" + (f".{post.turn}" if post.turn else "")
            headers = signed(secret, name, int(time.time()), content)
            reach = self._service.reach(job.key)
            outside = self._service.outside
            timeout_s = self._settings.timeout_s
            posting = deliver(outside.client, job.webhook, content, headers, reach, timeout_s)
            delivery = await outside.run(posting)
            again = None
            delays, jitter = self._settings.retry_delays_s, self._settings.retry_jitter
            if post.kind != "logs" and post.tries < len(delays):  # newer logs come anyway
                again = delays[post.tries] * random.uniform(1 - jitter, 1 + jitter)
            await asyncio.to_thread(self._service.outbox.tried, post, delivery, again)
            log_event(
                logging.INFO if delivery.good else logging.WARNING,
                "webhook tried",
                **job_log_fields(job),
                kind=post.kind,
                tries=post.tries + 1,
                status=delivery.status,
                cause=(delivery.error or "").partition(":")[0] or None,
                seconds=round(delivery.seconds, 3),
            )
            if delivery.status == GONE:
                await asyncio.to_thread(self._service.outbox.give_up, job.key, job.webhook)


def as_told(job: Job, kind: str) -> Job:
    """A job as it was when it began, if that is told: it may have ended before that was posted."""
    if kind != "start":
        return job
    return replace(job, state="running", ended=None, result=None, error=None)


def signed(secret: str, name: str, at: int, content: bytes) -> dict[str, str]:
    """Make the headers of a webhook, signed by Standard Webhooks.

    Args:
        secret: `whsec_` and the base64 of the signing key.
        name: the webhook's id, which is the same in every attempt.
        at: the time in seconds since 1970.
        content: the body.
    """
    signed_at = datetime.fromtimestamp(at, UTC)
    return {
        "content-type": "application/json",
        "webhook-id": name,
        "webhook-timestamp": str(at),
        "webhook-signature": Webhook(secret).sign(name, signed_at, content.decode()),
    }


async def deliver(
    client: httpx2.AsyncClient,
    url: str,
    content: bytes,
    headers: Mapping[str, str],
    reach: Reach,
    timeout_s: float,
) -> Delivery:
    """Post once; what the receiver answers beside its status is not read."""
    at, began = time.time(), time.monotonic()
    status, error = None, None
    try:
        async with asyncio.timeout(timeout_s):
            answer = await open_response(client, "POST", httpx2.URL(url), reach, headers, content)
            await answer.aclose()
            status = answer.status_code
    except RequestError as refusal:
        error = str(refusal)
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as problem:
        error = _told(problem)
    return Delivery(at, status, error, time.monotonic() - began)


def _told(problem: Exception) -> str:
    return f"{type(problem).__name__}: {problem}".removesuffix(": ")
