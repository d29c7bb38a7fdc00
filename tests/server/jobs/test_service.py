"""The service: removal of expired jobs and files, the folder's lock, and listeners."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
from collections.abc import AsyncGenerator, Generator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from overpaint.cli import keys
from overpaint.errors import StoreError
from overpaint.imaging.codec import read_picture
from overpaint.request import Request
from overpaint.server.jobs.service import Service, Story
from overpaint.server.jobs.worker_process import run_job
from overpaint.server.settings import DAY_S
from overpaint.server.store.job_rows import HistoryEntry, NewJob
from overpaint.testing import ScriptedEngine
from tests.server.live import settings_for

HOUSE = Path(__file__).parents[3] / "examples" / "house.png"
PATIENCE = 30.0


@contextlib.contextmanager
def served(folder: Path, *, keep: float = 0.0, seconds: float = 0.0) -> Generator[Service]:
    settings = settings_for(folder, keep_days=keep / DAY_S, keep_uploads_days=60 / DAY_S)
    service = Service(settings, partial(ScriptedEngine, seconds))
    try:
        yield service
    finally:
        service.drain()
        service.close()


def made(service: Service, request: Request) -> str:
    async def run() -> str:
        job = await service.submit(request)
        ended = await service.ended(job.id, PATIENCE)
        assert ended is not None
        assert ended.state == "succeeded"
        return job.id

    return asyncio.run(run())


def test_service_tidy_removes_expired_jobs_and_files(tmp_path: Path) -> None:
    with served(tmp_path) as service:
        name = made(service, Request(image=read_picture(HOUSE)))
        upload = service.files.put(b"of no job")
        files = {upload, read_picture(HOUSE).sha256}
        for file in files:
            os.utime(tmp_path / "files" / file[:2] / file, (1, 1))
        assert list(service.files.get_results_folder(name).iterdir())
        service.retention.remove_expired()
        service.retention.remove_unknown_files()
        assert service.jobs.get(name) is None
        assert not service.files.get_results_folder(name).exists()
        assert not any(service.files.get_time(file) < float("inf") for file in files)


def test_service_tidy_keeps_needed_files(tmp_path: Path) -> None:
    with served(tmp_path, keep=3600.0, seconds=0.5) as service:
        waiting = asyncio.run(service.submit(Request(image=read_picture(HOUSE))))
        fresh = service.files.put(b"of no job yet")
        os.utime(
            tmp_path / "files" / read_picture(HOUSE).sha256[:2] / read_picture(HOUSE).sha256, (1, 1)
        )
        service.retention.remove_expired()
        service.retention.remove_unknown_files()
        assert service.files.get_time(fresh) < float("inf")
        assert service.files.get_time(read_picture(HOUSE).sha256) < float("inf")
        assert service.jobs.get(waiting.id) is not None


def test_service_tidy_removes_old_results_without_a_job(tmp_path: Path) -> None:
    """A store that is restored from a backup does not know the jobs that came after it."""
    with served(tmp_path, keep=3600.0) as service:
        known = made(service, Request())
        results = service.files.get_results_folder(known).parent
        names = {"old": "a" * 32, "fresh": "b" * 32, "strange": "lost+found"}
        for name in names.values():
            (results / name).mkdir()
            (results / name / "0-0.png").touch()
        for name in (known, names["old"], names["strange"]):
            os.utime(results / name, (1, 1))
        service.retention.remove_expired()
        service.retention.remove_unknown_files()
        assert {path.name for path in results.iterdir()} == {
            known,
            names["fresh"],
            names["strange"],
        }


def list_readable_by_others(folder: Path) -> list[Path]:
    return [path for path in (folder, *folder.rglob("*")) if path.stat().st_mode & 0o077]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_service_makes_files_that_their_owner_alone_can_read(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with served(data, keep=3600.0) as service:
        made(service, Request(image=read_picture(HOUSE)))
        names = {path.name for path in data.rglob("*")}
        assert {"jobs.db-wal", "jobs.db-shm", "server.lock", "results", "files"} <= names
        assert list_readable_by_others(data) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_keys_command_makes_a_store_that_its_owner_alone_can_read(tmp_path: Path) -> None:
    data = tmp_path / "data"
    keys.create("ann", data)
    assert (data / "jobs.db").exists()
    assert list_readable_by_others(data) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_service_restricts_the_folder_of_an_earlier_version(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with served(data, keep=3600.0) as service:
        made(service, Request(image=read_picture(HOUSE)))
    for path in (data, *data.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    with served(data, keep=3600.0):
        closed = (data, data / "results", data / "files", *data.glob("jobs.db*"))
        assert not {*closed, data / "server.lock"} & set(list_readable_by_others(data))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_service_leaves_the_permissions_of_a_folder_with_other_things(tmp_path: Path) -> None:
    (tmp_path / "homework.txt").touch()
    tmp_path.chmod(0o755)
    with served(tmp_path, keep=3600.0) as service:
        made(service, Request())
        readable = list_readable_by_others(tmp_path)
    assert readable == [tmp_path, tmp_path / "homework.txt"]


def test_service_second_server_in_a_folder_is_refused(tmp_path: Path) -> None:
    with served(tmp_path), pytest.raises(StoreError, match="Another server has the folder"):
        Service(settings_for(tmp_path), ScriptedEngine)
    with served(tmp_path):
        pass


def test_service_listener_sees_events_of_other_servers(tmp_path: Path) -> None:
    """Another server of the same store has the job."""

    async def run(service: Service) -> None:
        story, feed = service.follow("x"), service.feed
        entry = await anext(story)
        assert isinstance(entry, HistoryEntry)
        assert entry.kind == "queued"
        rest = asyncio.create_task(_kinds(story))
        ended = asyncio.create_task(service.ended("x", PATIENCE))
        with feed.listen("x") as knows, feed.listen("x") as does_not:
            knows.known, does_not.known = 1, 0
            service.look()
            assert await does_not.queue.get() == "ended"
            assert knows.queue.empty()
        (claimed,) = service.jobs.claim("another", 1, PATIENCE, ["other"])
        assert service.jobs.finish(claimed, "succeeded")
        await asyncio.sleep(0)  # they wait
        service.look()
        assert await rest == ["started", "succeeded"]
        job = await ended
        assert job is not None
        assert job.state == "succeeded"

    with served(tmp_path, keep=3600.0) as service:
        service.jobs.submit(NewJob("x", "", "other", {"prompt": "a cup"}, 1.0))
        asyncio.run(run(service))


def test_service_listener_of_removed_job_ends(tmp_path: Path) -> None:
    async def run(service: Service) -> None:
        ended = asyncio.create_task(service.ended("no job", PATIENCE))
        with service.feed.listen("no job") as listener:
            listener.known = 7
            service.look()
            assert await listener.queue.get() == "ended"
        assert await ended is None

    with served(tmp_path) as service:
        asyncio.run(run(service))


async def _kinds(story: AsyncGenerator[Story]) -> list[str]:
    return [said.kind async for said in story if isinstance(said, HistoryEntry)]


def test_worker_gets_the_fields_that_came_with_the_request(tmp_path: Path) -> None:
    """A preset or a few-step LoRA sets the other ones, also after a restart."""
    asked = Request(prompt="a fox", preset="fast", guidance_scale=4.0)
    with served(tmp_path) as service:
        job = service.jobs.get(made(service, asked))
        assert job is not None
        request = pickle.loads(pickle.dumps(run_job(job, service.files))).request
        assert request == asked
        assert request.model_fields_set == asked.model_fields_set
        filled = request.fill_unset({"num_inference_steps": 15, "guidance_scale": 1.0})
        assert (filled.num_inference_steps, filled.guidance_scale) == (15, 4.0)


def test_request_of_an_earlier_version_keeps_all_its_fields(tmp_path: Path) -> None:
    with served(tmp_path) as service:
        job = service.jobs.get(made(service, Request(prompt="a fox")))
        assert job is not None
        origin = job.origin.model_copy(update={"set_fields": None})
        request = run_job(replace(job, origin=origin), service.files).request
        assert request.model_fields_set == set(Request.model_fields)
