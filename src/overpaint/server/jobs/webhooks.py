"""Deliver webhooks: signed, and repeated until the receiver has them.

Signatures follow Standard Webhooks 1.0.0 (https://www.standardwebhooks.com), as Replicate's do. All
attempts at a webhook have the same `webhook-id`. A 2xx status is success, and 410 stops all
webhooks to the URL. The server does not follow redirects. A receiver may get a webhook twice, for
instance if the server dies during a delivery.
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
from overpaint.network.addresses import Reach
from overpaint.network.client import open_response
from overpaint.server.http.threads import run_in_write_thread
from overpaint.server.jobs.service import Service
from overpaint.server.settings import WebhookSettings
from overpaint.server.store.job_rows import ENDED, Job
from overpaint.server.store.outbox import Delivery, DueWebhook
from overpaint.server.telemetry.logs import job_log_fields, log_and_continue, log_event

MakePayload = Callable[[Service, Job], Awaitable[dict[str, Any]]]
"""Makes the body of a job's webhook, in the format of one dialect."""

STATUS_GONE = 410


class WebhookSender:
    """Delivers the webhooks of a running server."""

    def __init__(self, service: Service, bodies: Mapping[str, MakePayload]):
        """Prepare; nothing is delivered before `running`.

        Args:
            service: whose webhooks are delivered.
            bodies: makers of bodies by the name of the job's dialect.
        """
        self._service = service
        self._bodies = bodies
        self._settings: WebhookSettings = service.settings.webhooks
        self._deliveries = dict[asyncio.Task[None], DueWebhook]()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Deliver webhooks during the block, and those that are due at its end."""
        loop = asyncio.create_task(self._deliver_due_forever())
        try:
            yield
        finally:
            loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await loop
            with log_and_continue():
                await self._start_due()
            if self._deliveries:
                await asyncio.wait(self._deliveries)

    async def _deliver_due_forever(self) -> None:
        while True:
            with log_and_continue():
                await self._start_due()
            await asyncio.sleep(self._settings.poll_interval_s)

    async def _start_due(self) -> None:
        """Start the deliveries that are due."""
        outbox = self._service.outbox
        await run_in_write_thread(outbox.requeue_logs, self._service.feed.take_stepped_jobs())
        if free := self._settings.concurrent_deliveries - len(self._deliveries):
            posts = Counter(post.key for post in self._deliveries.values())
            for post in await run_in_write_thread(
                outbox.claim_due, free, self._settings.lease_s, posts
            ):
                task = asyncio.create_task(self._deliver(post))
                self._deliveries[task] = post
                task.add_done_callback(self._deliveries.pop)

    async def _deliver(self, post: DueWebhook) -> None:
        with log_and_continue():  # after an error it is due again when its lease expires
            job = await asyncio.to_thread(self._service.jobs.get, post.job)
            if job is None or job.webhook is None:
                return
            body = self._bodies[job.origin.dialect]
            payload = await body(self._service, job_at_event(job, post.kind))
            secret = await run_in_write_thread(self._service.outbox.get_secret, job.key)
            content = await asyncio.to_thread(lambda: json.dumps(payload).encode())  # large
            name = f"{job.id}.{post.kind}" + (f".{post.turn}" if post.turn else "")
            headers = sign_webhook(secret, name, int(time.time()), content)
            reach = self._service.reach(job.key)
            outside = self._service.outside
            timeout_s = self._settings.timeout_s
            attempt = deliver(outside.client, job.webhook, content, headers, reach, timeout_s)
            delivery = await outside.run(attempt)
            again = None
            delays, jitter = self._settings.retry_delays_s, self._settings.retry_jitter
            if post.kind != "logs" and post.tries < len(delays):  # newer logs follow
                again = delays[post.tries] * random.uniform(1 - jitter, 1 + jitter)
            await run_in_write_thread(self._service.outbox.record_delivery, post, delivery, again)
            log_event(
                logging.INFO if delivery.succeeded else logging.WARNING,
                "webhook tried",
                **job_log_fields(job),
                kind=post.kind,
                tries=post.tries + 1,
                status=delivery.status,
                cause=(delivery.error or "").partition(":")[0] or None,
                seconds=round(delivery.seconds, 3),
            )
            if delivery.status == STATUS_GONE:
                await run_in_write_thread(self._service.outbox.cancel_for_url, job.key, job.webhook)


def job_at_event(job: Job, kind: str) -> Job:
    """Return a job as it was at an event, even if it has ended since.

    Only the webhook "completed" reports the end: receivers act on the first post of an ended job.
    """
    if kind == "completed" or (kind != "start" and job.state not in ENDED):
        return job
    result = job.result if kind == "output" else None
    return replace(job, state="running", ended=None, result=result, error=None)


def sign_webhook(secret: str, name: str, at: int, content: bytes) -> dict[str, str]:
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
    """Make one attempt, and read only the status of the response."""
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
        error = f"{type(problem).__name__}: {problem}".removesuffix(": ")
    return Delivery(at, status, error, time.monotonic() - began)
