"""Usage: one entry for each ended job, and its sums."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from overpaint.cli.main import app
from overpaint.errors import RequestError, StoreError
from overpaint.events import Spent
from overpaint.server.store.api_keys import ApiKeys, hash_key
from overpaint.server.store.database import Database
from overpaint.server.store.jobs import Jobs
from overpaint.server.store.usage import UsageReader, UsageTotal
from tests.server.conftest import Clock
from tests.server.live import client_of, until
from tests.server.store.test_jobs import LEASE, new

NOON = datetime(2026, 2, 28, 12, tzinfo=UTC).timestamp()
DAY = 86400.0
TWO_FILES = {"files": ["1-0.png", "1-1.png"]}
TENTHS = Spent(0.1, 0.1)


def total(store: Jobs) -> UsageTotal:
    """Return the sum over all jobs, which are for one model."""
    (found,) = UsageReader(store.database).sum_usage("model")
    return found


def test_ended_job_has_one_usage_entry(store: Jobs) -> None:
    store.submit(new("a"))
    (claimed,) = store.claim("me", 1, LEASE)
    assert UsageReader(store.database).sum_usage("model") == []
    assert store.finish(claimed, "succeeded", result=TWO_FILES, spent=Spent(1.5, 0.25))
    assert not store.finish(claimed, "succeeded", result=TWO_FILES, spent=Spent(1.5, 0.25))
    store.cancel("a")
    assert total(store) == UsageTotal("miniature", 1, 2, 0.25, 1.5)


def test_lost_attempt_is_not_charged(store: Jobs) -> None:
    store.submit(new("a"))
    (lost,) = store.claim("me", 1, LEASE)
    assert store.release(lost, crashed=True)
    (claimed,) = store.claim("me", 1, LEASE)
    assert not store.finish(lost, "succeeded", result=TWO_FILES, spent=Spent(8.0, 8.0))
    assert store.finish(claimed, "succeeded", result=TWO_FILES, spent=Spent(1.5, 0.25))
    assert total(store) == UsageTotal("miniature", 1, 2, 0.25, 1.5)


def test_jobs_that_end_without_pictures_have_usage_entries(store: Jobs) -> None:
    for name in ("queued", "running", "deadly"):
        store.submit(new(name))
    store.cancel("queued")
    claimed = {job.id: job for job in store.claim("me", 2, LEASE)}
    store.cancel("running")
    assert store.finish(claimed["running"], "canceled", spent=Spent(0.5, 0.125))
    deadly = claimed["deadly"]
    while store.release(deadly, crashed=True) and (again := store.claim("me", 1, LEASE)):
        (deadly,) = again
    found = store.get("deadly")
    assert found is not None
    assert found.state == "failed"
    assert total(store) == UsageTotal("miniature", 3, 0, 0.125, 0.5)


def test_usage_of_deleted_jobs_is_kept(store: Jobs, clock: Clock) -> None:
    store.submit(new("a"))
    (claimed,) = store.claim("me", 1, LEASE)
    store.finish(claimed, "succeeded", result=TWO_FILES)
    before = total(store)
    clock.now += 1
    store.delete(store.list_ended_before(clock.now - 0.5))
    assert store.get("a") is None
    assert total(store) == before


def finish_job(store: Jobs, key: str, model: str = "miniature", spent: Spent = TENTHS) -> None:
    """Submit a job and finish it with two pictures."""
    job = store.submit(new(key=key, model=model))
    (claimed,) = store.claim("me", 1, LEASE)
    assert claimed.id == job.id
    assert store.finish(claimed, "succeeded", result=TWO_FILES, spent=spent)


def test_usage_sums_by_day_key_and_model(store: Jobs, clock: Clock) -> None:
    """Three days of usage by a named key, a key without a name, and no key."""
    ann, other = hash_key(ApiKeys(store.database).create("ann")), hash_key("given")
    clock.now = NOON
    finish_job(store, ann)
    clock.now += DAY
    finish_job(store, ann, "sdxl", Spent(2.0, 30.0))
    finish_job(store, other)
    clock.now += DAY / 2 - 0.001
    finish_job(store, "")
    clock.now += 0.002
    finish_job(store, ann)
    ledger = UsageReader(store.database)
    assert [(one.name, one.jobs, one.pictures) for one in ledger.sum_usage("day")] == [
        ("2026-02-28", 1, 2),
        ("2026-03-01", 3, 6),
        ("2026-03-02", 1, 2),
    ]
    by_key = {one.name: one.jobs for one in ledger.sum_usage("key")}
    assert by_key == {"": 1, other[:12]: 1, "ann": 3}
    assert [(one.name, one.device_seconds) for one in ledger.sum_usage("model")] == [
        ("miniature", pytest.approx(0.4)),
        ("sdxl", 2.0),
    ]
    first = date(2026, 3, 1)
    assert [one.jobs for one in ledger.sum_usage("key", since=first, key=ann)] == [2]
    assert [one.jobs for one in ledger.sum_usage("key", since=first, until=first, key=ann)] == [1]
    assert ledger.sum_usage("model", until=date(2026, 2, 27)) == []
    assert [ledger.find_digest(name) for name in ("ann", other[:12], "")] == [ann, other, ""]
    with pytest.raises(StoreError, match="No key has the name 'bob'"):
        ledger.find_digest("bob")


def overpaint(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["usage", *arguments])
    if result.exception:
        raise result.exception
    return result.output


@pytest.fixture
def data_option(tmp_path: Path) -> tuple[str, str]:
    """The option for a data folder in whose store ann used the miniature and others SDXL."""
    clock = Clock()
    database = Database(f"sqlite:///{tmp_path}/jobs.db", clock)
    clock.now = NOON
    store = Jobs(database)
    for _ in range(3):
        finish_job(store, hash_key("one"), "sdxl", Spent(0.1, 0.1))
    finish_job(store, hash_key(ApiKeys(database).create("ann")))
    clock.now += DAY
    finish_job(store, "")
    database.close()
    return ("--data", str(tmp_path))


def test_usage_command_prints_an_aligned_table(data_option: tuple[str, str]) -> None:
    lines = overpaint(*data_option, "--price", "0.05", "--currency", "EUR").splitlines()
    cells = {line[:14].strip(): line[14:].split() for line in lines}
    assert lines[0].split() == ["key", *HEADINGS, "EUR"]
    assert cells["ann"] == ["1", "2", "0.100", "0.100", "0.10"]
    assert cells[hash_key("one")[:12]] == ["3", "6", "0.300", "0.300", "0.30"]
    assert cells["(no key)"] == ["1", "2", "0.100", "0.100", "0.10"]
    assert cells["total"] == ["5", "10", "0.500", "0.500", "0.50"]
    assert len({len(line) for line in lines}) == 1


HEADINGS = ("jobs", "pictures", "megapixel-steps", "device-seconds")


def test_usage_command_prints_csv(data_option: tuple[str, str]) -> None:
    printed = overpaint(
        *data_option, "--csv", "--by", "day", "--price", "0.0175", "--currency", "EUR"
    )
    assert printed.splitlines() == [
        "day,jobs,pictures,megapixel_steps,device_seconds,amount,currency",
        "2026-02-28,4,8,0.400000,0.400,0.1400,EUR",
        "2026-03-01,1,2,0.100000,0.100,0.0350,EUR",
    ]
    printed = overpaint(*data_option, "--csv", "--by", "model", "--since", "2026-03-01")
    assert printed.splitlines() == [
        "model,jobs,pictures,megapixel_steps,device_seconds",
        "miniature,1,2,0.100000,0.100",
    ]
    printed = overpaint(*data_option, "--csv", "--key", "ann", "--until", "2026-02-28")
    assert printed.splitlines()[1:] == ["ann,1,2,0.100000,0.100"]
    assert overpaint(*data_option, "--csv", "--until", "2026-02-27").count("\n") == 1


def test_usage_command_with_invalid_options_is_refused(
    data_option: tuple[str, str], tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="no job store"):
        overpaint("--data", str(tmp_path / "elsewhere"))
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(StoreError, match="No key has the name 'bob'"):
        overpaint(*data_option, "--key", "bob")
    with pytest.raises(RequestError, match="until"):
        overpaint(*data_option, "--since", "2026-03-02", "--until", "2026-03-01")
    with pytest.raises(RequestError, match="price"):
        overpaint(*data_option, "--currency", "EUR")
    for price in ("-1", "nan", "inf", "much"):
        with pytest.raises(SystemExit):
            overpaint(*data_option, "--price", price)


def test_usage_route_shows_only_the_usage_of_its_key(tmp_path: Path) -> None:
    def usage(client: TestClient, key: str, **asked: str) -> list[dict[str, object]]:
        answer = client.get("/api/usage", params=asked, headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == 200, answer.text
        return answer.json()

    with client_of(tmp_path, api_keys=("one", "two")) as client:
        request = {"prompt": "a cup", "num_inference_steps": 4, "num_images": 2}
        headers = {"authorization": "Bearer one"}
        made = client.post("/api/jobs?wait=60", json={"request": request}, headers=headers).json()
        assert made["state"] == "succeeded"
        entry = {"jobs": 1, "pictures": 2, "megapixel_steps": 0.000512, "device_seconds": 0.004}
        assert usage(client, "one", by="model") == [{"name": "m"} | entry]
        day = datetime.fromtimestamp(made["ended"], UTC).date().isoformat()
        assert usage(client, "one", since=day, until=day) == [{"name": day} | entry]
        assert usage(client, "one", until="2026-01-01") == []
        assert usage(client, "two") == []
        assert client.get("/api/usage").status_code == 401
        answer = client.get("/api/usage?since=soon", headers=headers)
        assert answer.status_code == 422
        # By the command line too, while the server runs.
        data = ("--data", str(tmp_path))
        until(lambda: hash_key("one")[:12] in overpaint(*data))
        assert overpaint(*data, "--csv").splitlines()[1].endswith(",1,2,0.000512,0.004")
