"""Webhooks as their receivers see them, checked by Replicate's own validator."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from replicate.webhook import Webhooks, WebhookSigningSecret

from overpaint.server.jobs.webhooks import sign_webhook
from overpaint.server.settings import WebhookSettings
from tests.server.live import running, until

PATIENCE = 30.0


@dataclass
class Receiver:
    """A receiver of webhooks with configured responses.

    Attributes:
        url: address of the receiver.
        posts: headers and body of each delivery.
        answers: statuses of the next responses; 200 after that.
    """

    url: str
    posts: list[tuple[dict[str, str], bytes]] = field(
        default_factory=list[tuple[dict[str, str], bytes]]
    )
    answers: list[int] = field(default_factory=list[int])

    def told(self) -> list[tuple[str, Any]]:
        """Events by their ids, and bodies."""
        return [(h["webhook-id"].split(".")[1], json.loads(body)) for h, body in list(self.posts)]

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.told()]


@contextlib.contextmanager
def receiving() -> Generator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.posts.append(({k.lower(): v for k, v in self.headers.items()}, body))
            status = receiver.answers.pop(0) if receiver.answers else 200
            self.send_response(status)
            self.send_header("Location", receiver.url)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver = Receiver(f"http://127.0.0.1:{server.server_port}/hook")
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with running(tmp_path, 0.01) as address:
        yield address


@pytest.fixture
def retrying(tmp_path: Path) -> Iterator[str]:
    """The address of a server that tries webhooks again at once, three times."""
    with running(tmp_path, 0.01, webhooks=WebhookSettings(retry_delays_s=(0.05,) * 3)) as url:
        yield url


def predict(url: str, hook: str, prompt: str = "a cup", **changes: Any) -> dict[str, Any]:
    body = {"input": {"prompt": prompt}, "webhook": hook} | changes
    answer = httpx.post(f"{url}/v1/models/overpaint/miniature/predictions", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


def log(url: str, name: str) -> dict[str, Any]:
    answer = httpx.get(f"{url}/api/jobs/{name}/webhooks")
    return {posted["event"]: posted for posted in answer.json()}


def test_webhook_of_prediction_is_signed(url: str, receiver: Receiver) -> None:
    made = predict(url, receiver.url)
    until(lambda: "completed" in receiver.kinds())
    secret = httpx.get(f"{url}/v1/webhooks/default/secret").json()["key"]
    for headers, body in receiver.posts:
        Webhooks.validate(
            headers=headers, body=body.decode(), secret=WebhookSigningSecret(key=secret)
        )
    told = dict(receiver.told())
    assert {"start", "output", "completed"} <= set(told)
    assert told["start"]["status"] == "processing"
    assert told["start"]["output"] is None
    done = told["completed"]
    assert (done["id"], done["status"]) == (made["id"], "succeeded")
    assert done["output"][0].startswith(f"{url}/v1/predictions/{made['id']}/output/")
    assert httpx.get(done["output"][0]).headers["content-type"] == "image/png"
    assert done["completed_at"]


def test_webhook_filter_limits_events(url: str, receiver: Receiver) -> None:
    predict(url, receiver.url, webhook_events_filter=["completed"])
    predict(url, receiver.url, "refuse", webhook_events_filter=["output", "completed"])
    until(lambda: len(receiver.posts) == 2)
    assert receiver.kinds() == ["completed"] * 2
    assert {told["status"] for _, told in receiver.told()} == {"succeeded", "failed"}


@pytest.mark.parametrize("only", [None, []])
def test_webhook_filter_without_events_means_all(
    url: str, receiver: Receiver, only: list[str] | None
) -> None:
    predict(url, receiver.url, webhook_events_filter=only)
    until(lambda: {"start", "output", "logs", "completed"} <= set(receiver.kinds()))


def test_webhook_logs_are_sent_at_intervals(tmp_path: Path, receiver: Receiver) -> None:
    with running(tmp_path, 0.1) as url:
        predict(url, receiver.url, webhook_events_filter=["logs", "completed"])
        until(lambda: "completed" in receiver.kinds())
    logs = [(headers, told) for headers, told in map(_read, receiver.posts) if "logs" in headers]
    assert len({headers for headers, _ in logs}) == len(logs) >= 2
    assert "it/s" in logs[0][1]["logs"] or "%|" in logs[0][1]["logs"]
    steps, seconds = 50, 5.0
    assert len(logs) <= seconds / WebhookSettings().poll_interval_s + 2 < steps


def _read(post: tuple[dict[str, str], bytes]) -> tuple[str, Any]:
    return post[0]["webhook-id"], json.loads(post[1])


def test_webhook_failed_delivery_is_repeated_and_logged(retrying: str, receiver: Receiver) -> None:
    url = retrying
    receiver.answers = [500, 302]
    made = predict(url, receiver.url, webhook_events_filter=["completed"])
    until(lambda: log(url, made["id"])["completed"]["state"] == "delivered")
    tries = log(url, made["id"])["completed"]["tries"]
    assert [one["status"] for one in tries] == [500, 302, 200]
    assert len({headers["webhook-id"] for headers, _ in receiver.posts}) == 1
    again = httpx.post(f"{url}/api/jobs/{made['id']}/webhooks/completed/replay")
    assert again.status_code == 202
    until(lambda: len(log(url, made["id"])["completed"]["tries"]) == 4)
    assert len(receiver.posts) == 4
    missing = httpx.post(f"{url}/api/jobs/{made['id']}/webhooks/start/replay")
    assert missing.status_code == 409


def test_webhook_unreachable_receiver_fails_after_all_tries(retrying: str) -> None:
    url = retrying
    hook = "http://127.0.0.1:9/nobody"
    made = predict(url, hook, webhook_events_filter=["completed"])
    until(lambda: log(url, made["id"])["completed"]["state"] == "failed")
    tries = log(url, made["id"])["completed"]["tries"]
    assert [one["status"] for one in tries] == [None] * 4
    assert all("ConnectError" in one["error"] for one in tries)


def test_webhook_receiver_with_410_gets_no_more(tmp_path: Path, receiver: Receiver) -> None:
    receiver.answers = [410]
    with running(tmp_path, 0.1) as url:
        made = predict(url, receiver.url, webhook_events_filter=["start", "completed"])
        until(lambda: log(url, made["id"])["completed"]["state"] == "gone")
        httpx.post(f"{url}/api/jobs/{made['id']}/cancel")
        until(lambda: httpx.get(f"{url}/api/jobs/{made['id']}").json()["state"] == "canceled")
        states = [posted["state"] for posted in log(url, made["id"]).values()]
    assert states == ["gone", "gone"]
    assert receiver.kinds() == ["start"]


def test_webhook_of_native_job_has_the_native_body(url: str, receiver: Receiver) -> None:
    body = {"request": {"prompt": "a cup"}, "webhook": receiver.url}
    made = httpx.post(f"{url}/api/jobs", json=body).json()
    until(lambda: len(receiver.kinds()) == 2)  # in any order, if both were due at once
    told = dict(receiver.told())
    assert set(told) == {"start", "completed"}
    assert told["start"]["state"] == "running"
    assert (told["completed"]["id"], told["completed"]["state"]) == (made["id"], "succeeded")
    assert told["completed"]["results"][0]["url"].startswith("/api/jobs/")


def test_webhook_due_at_shutdown_is_sent_by_the_next_server(
    tmp_path: Path, receiver: Receiver
) -> None:
    with running(tmp_path, 0.01) as url:
        made = predict(url, receiver.url, "a cup hang", webhook_events_filter=["completed"])
        until(lambda: httpx.get(f"{url}/api/jobs/{made['id']}").json()["state"] == "running")
    assert receiver.posts == []
    with running(tmp_path, 0.01) as url:
        httpx.post(f"{url}/api/jobs/{made['id']}/cancel")
        until(lambda: receiver.kinds() == ["completed"])


@pytest.mark.parametrize("bad", ["ftp://example.org", "http://", "example.org", 7])
def test_webhook_invalid_url_is_rejected(url: str, bad: Any) -> None:
    for path, body in (
        ("/api/jobs", {"request": {}, "webhook": bad}),
        ("/v1/predictions", {"version": "overpaint/miniature", "input": {}, "webhook": bad}),
    ):
        answer = httpx.post(f"{url}{path}", json=body)
        assert answer.status_code == 422
        assert "webhook" in answer.text


def test_webhook_signature_matches_the_standard() -> None:
    """The example of the Standard Webhooks libraries."""
    headers = sign_webhook(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
