"""A server in a thread, for clients that are given its address."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from overpaint.server.app import Server, create_app, uvicorn_config
from overpaint.server.jobs.service import Settings
from overpaint.server.jobs.supervisor import Pace
from overpaint.server.outbound.image_fetch import ImageSources
from overpaint.server.store.files import Files
from tests.server.fake import Fake

PATIENCE = 60.0
NOWHERE = ImageSources(Files(Path("nowhere")))
"""For requests without uploads and URLs."""


@contextlib.contextmanager
def running(folder: Path, seconds: float = 0.0, **changes: Any) -> Generator[str]:
    """The address of a server whose engine paints nothing, unless `changes` say so."""
    doors = {name: changes.pop(name) for name in ("keys", "hosts", "origins") if name in changes}
    settings: dict[str, Any] = {
        "models": ("miniature", "sdxl"),
        "make": Fake,
        "arguments": (seconds,),
        "pace": Pace(look=0.05),
        "grace": 0.0,
    } | changes
    app = create_app(Settings(folder, **settings), **doors)
    config = uvicorn_config(app, "127.0.0.1", 0)
    config.timeout_graceful_shutdown = 1
    server = Server(config)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        end = time.monotonic() + PATIENCE
        while not server.started:
            assert time.monotonic() < end
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def client_of(folder: Path, seconds: float = 0.0, **changes: Any) -> TestClient:
    """A client of a server whose engine paints nothing, in one process."""
    keys = changes.pop("keys", ())
    settings: dict[str, Any] = {
        "make": Fake,
        "arguments": (seconds,),
        "pace": Pace(look=0.05),
        "grace": 0.0,
    } | changes
    return TestClient(create_app(Settings(folder, ("m", "n"), **settings), keys))


def until(true: Callable[[], object]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
