"""Keys of the store, and links that stand for them."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from overpaint.cli.main import app
from overpaint.errors import RequestError, StoreError
from overpaint.server.http.signed_links import LinkSigner
from overpaint.server.settings import ServerSettings, StoreSettings
from overpaint.server.store.api_keys import ApiKeys, hash_key, open_api_keys
from overpaint.server.store.jobs import Jobs
from overpaint.server.store.tables import keys as table
from tests.server.live import running, until

TIMEOUT_S = 30.0


def overpaint(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["keys", *arguments])
    if result.exception:
        raise result.exception
    return result.output.strip()


def test_created_key_is_stored_as_digest_only(store: Jobs) -> None:
    keys = ApiKeys(store.database)
    assert not keys.are_required()
    made = ApiKeys(store.database).create("ann")
    assert re.fullmatch(r"op_[A-Za-z0-9_-]{43}", made)
    with store.database.read() as connection:
        rows = connection.execute(select(table)).all()
    assert [tuple(row)[:2] for row in rows] == [(hash_key(made), "ann")]
    keys = ApiKeys(store.database)
    assert keys.are_required()
    assert keys.has_active()
    assert keys.accepts(hash_key(made))
    assert not keys.accepts(hash_key(made + "x"))


def test_revoked_key_is_refused_and_keys_stay_required(store: Jobs) -> None:
    keys = ApiKeys(store.database)
    made = keys.create("ann")
    keys.revoke("ann")
    keys = ApiKeys(store.database)
    assert not keys.accepts(hash_key(made))
    assert keys.are_required()
    assert not keys.has_active()
    assert [key.revoked is not None for key in keys.list_keys()] == [True]
    for name in ("ann", "bob"):
        with pytest.raises(StoreError, match=name):
            keys.revoke(name)


@pytest.mark.parametrize("name", ["ann", "", "n" * 101])
def test_create_key_with_used_or_invalid_name_is_refused(store: Jobs, name: str) -> None:
    keys = ApiKeys(store.database)
    keys.create("ann")
    keys.revoke("ann")
    with pytest.raises(StoreError, match="key"):
        keys.create(name)
    assert len(keys.list_keys()) == 1


def test_configured_keys_are_accepted_without_stored_ones(store: Jobs) -> None:
    keys = ApiKeys(store.database, ("one", "two"))
    assert keys.are_required()
    assert keys.accepts(hash_key("two"))
    assert not keys.accepts(hash_key("three"))


def test_keys_command_creates_lists_and_revokes(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "new"))
    made = overpaint("create", "--name", "ann", *data)
    unnamed = overpaint("create", *data)
    overpaint("revoke", "ann", *data)
    listed = json.loads(overpaint("list", "--json", *data))
    assert [key["name"] for key in listed] == ["ann", hash_key(unnamed)[:12]]
    assert listed[0]["revoked"] >= listed[0]["created"]
    assert listed[1]["revoked"] is None
    shown = overpaint("list", *data)
    assert "ann" in shown
    assert made not in shown


def get(url: str, key: str | None, path: str = "/api/jobs") -> int:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.get(url + path, headers=headers).status_code


def wait_for_status(status: int, url: str, key: str | None) -> None:
    end = time.monotonic() + TIMEOUT_S
    while get(url, key) != status:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_api_keys_changed_while_a_server_runs_take_effect(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path))
    with running(tmp_path, database=StoreSettings(key_cache_s=0.05)) as url:
        assert get(url, None) == 200
        one = overpaint("create", "--name", "one", *data)
        wait_for_status(401, url, None)
        assert get(url, one) == 200
        two = overpaint("create", *data)
        wait_for_status(200, url, two)
        overpaint("revoke", "one", *data)
        wait_for_status(401, url, one)
        assert get(url, two) == 200


def test_serve_on_public_address_without_active_key_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[ServerSettings] = []

    def served_with(settings: ServerSettings, **_: Any) -> None:
        served.append(settings)

    monkeypatch.setattr("overpaint.server.app.run", served_with)
    command = ["serve", "--host", "0.0.0.0", "--port", "0", "--data", str(tmp_path)]

    def serve(*more: str) -> None:
        result = CliRunner().invoke(app, [*command, *more])
        if result.exception:
            raise result.exception

    with pytest.raises(RequestError, match="overpaint keys create"):
        serve()
    overpaint("create", "--name", "ann", "--data", str(tmp_path))
    serve("--allowed-host", "paint.example", "--allowed-origin", "https://a.example")
    assert served[0].allowed_hosts == ("paint.example",)
    assert served[0].allowed_origins == ("https://a.example",)
    overpaint("revoke", "ann", "--data", str(tmp_path))
    with pytest.raises(RequestError, match="overpaint keys create"):
        serve()
    serve("--key", "one")
    for bad in ("*", "a.example", "https://a.example/", "https://*.example"):
        with pytest.raises(RequestError, match="allowed_origin"):
            serve("--key", "one", "--allowed-origin", bad)
    assert len(served) == 2


def test_signed_link_is_valid_for_one_picture_until_it_expires(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    links = LinkSigner("secret", 3600)
    given = parse_qs(links.sign_query("job", "1-0.png"))
    expires, signature = int(given["expires"][0]), given["signature"][0]
    assert links.verify("job", "1-0.png", expires, signature)
    assert not links.verify("job", "1-1.png", expires, signature)
    assert not links.verify("other", "1-0.png", expires, signature)
    assert not links.verify("job", "1-0.png", expires + 1, signature)
    assert not links.verify("job", "1-0.png", expires, signature[:-1])
    assert not links.verify("job", "1-0.png", expires, "é")
    assert not LinkSigner("another", 3600).verify("job", "1-0.png", expires, signature)
    late = parse_qs(LinkSigner("secret", -1).sign_query("job", "1-0.png"))
    assert not links.verify("job", "1-0.png", int(late["expires"][0]), late["signature"][0])


def test_signed_links_in_responses_work_without_key(tmp_path: Path) -> None:
    with running(tmp_path, api_keys=("one", "two")) as url:
        one = {"authorization": "Bearer one"}
        asked = {"prompt": "a cup", "response_format": "url"}
        made = httpx.post(f"{url}/v1/images/generations", json=asked, headers=one, timeout=60)
        theirs = made.json()["data"][0]["url"]
        path = urlsplit(theirs).path
        name = path.split("/")[3]
        listed = httpx.get(f"{url}/v1/predictions", headers=one).json()["results"]
        for link in (theirs, listed[0]["output"][0]):
            answer = httpx.get(link)
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "image/png"
        assert httpx.get(theirs, headers={"authorization": "Bearer two"}).status_code == 200
        assert httpx.get(theirs + "x").status_code == 403
        assert httpx.get(f"{url}{path}?expires=9999999999").status_code == 403
        assert get(url, None, path) == 401
        assert get(url, "two", path) == 404
        assert get(url, "one", path) == 200
        query = urlsplit(theirs).query
        assert httpx.get(f"{url}/api/jobs/{name}?{query}").status_code == 401


def test_links_without_required_keys_are_unsigned(tmp_path: Path) -> None:
    with running(tmp_path) as url:
        asked = {"prompt": "a cup", "response_format": "url"}
        made = httpx.post(f"{url}/v1/images/generations", json=asked, timeout=60).json()
        assert urlsplit(made["data"][0]["url"]).query == ""


def test_open_event_stream_of_a_revoked_key_ends_while_its_job_runs(tmp_path: Path) -> None:
    with open_api_keys(f"sqlite:///{tmp_path / 'jobs.db'}") as keys:
        key = keys.create("ann")
        fast = StoreSettings(key_cache_s=0.1)
        headers = {"Authorization": f"Bearer {key}"}
        with running(tmp_path, 0.05, database=fast) as url:
            body = {"request": {"prompt": "a cup", "num_inference_steps": 1000}}
            job = httpx.post(f"{url}/api/jobs", json=body, headers=headers).json()
            events = f"{url}/api/jobs/{job['id']}/events"
            with httpx.stream("GET", events, headers=headers, timeout=60) as stream:
                lines = stream.iter_lines()
                until(lambda: next(lines) == "event: step")
                keys.revoke("ann")
                rest = list(lines)
            assert not {"event: succeeded", "event: canceled"} & set(rest)
            assert httpx.get(events, headers=headers).status_code == 401
