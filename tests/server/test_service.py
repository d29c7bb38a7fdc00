"""A server over the days: what it forgets and what it keeps, and that it is alone in its folder."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from overpaint.errors import StoreError
from overpaint.images import picture
from overpaint.request import Request
from overpaint.server.service import Service, Settings
from overpaint.server.supervisor import Pace

from .fake import Fake

HOUSE = Path(__file__).parents[2] / "examples" / "house.png"
PATIENCE = 30.0


@contextlib.contextmanager
def served(folder: Path, *, keep: float = -1.0, seconds: float = 0.0) -> Generator[Service]:
    settings = Settings(
        folder,
        ("m",),
        Fake,
        (seconds,),
        pace=Pace(look=0.05),
        keep_results=keep,
        keep_files=60.0,
        grace=0.0,
    )
    service = Service(settings)
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


def test_what_is_older_than_it_is_kept_is_forgotten(tmp_path: Path) -> None:
    with served(tmp_path) as service:
        name = made(service, Request(image=picture(HOUSE)))
        upload = service.files.put(b"of no job")
        files = {upload, picture(HOUSE).sha256}
        for file in files:
            os.utime(tmp_path / "files" / file[:2] / file, (1, 1))
        assert list(service.files.results(name).iterdir())
        service.tidy()
        assert service.jobs.get(name) is None
        assert not service.files.results(name).exists()
        assert not any(service.files.has(file) for file in files)


def test_what_is_needed_is_kept(tmp_path: Path) -> None:
    with served(tmp_path, keep=3600.0, seconds=0.5) as service:
        waiting = asyncio.run(service.submit(Request(image=picture(HOUSE))))
        fresh = service.files.put(b"of no job yet")
        os.utime(tmp_path / "files" / picture(HOUSE).sha256[:2] / picture(HOUSE).sha256, (1, 1))
        service.tidy()
        assert service.files.has(fresh)
        assert service.files.has(picture(HOUSE).sha256)
        assert service.jobs.get(waiting.id) is not None


def test_a_folder_has_one_server(tmp_path: Path) -> None:
    with served(tmp_path), pytest.raises(StoreError, match="another server has the folder"):
        Service(Settings(tmp_path, ("m",), Fake))
    with served(tmp_path):
        pass
