"""A server in a thread, for clients that are given its address."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi.testclient import TestClient

from overpaint.engine.worker import EngineFactory
from overpaint.server.app import Server, create_app, uvicorn_config
from overpaint.server.outbound.image_fetch import ImageSources
from overpaint.server.settings import ServerSettings, WorkerSettings
from overpaint.server.store.files import Files
from overpaint.testing import ScriptedEngine

if TYPE_CHECKING:
    from overpaint.server.telemetry.traces import TraceExporter  # whose libraries are optional

PATIENCE = 60.0
NOWHERE = ImageSources(Files(Path("nowhere")))
"""For requests without uploads and URLs."""


def settings_for(folder: Path, **changes: Any) -> ServerSettings:
    """Settings of a server for tests: it looks at its store often, and answers to any host name."""
    given: dict[str, Any] = {
        "data": folder,
        "models": ("m", "n"),
        "host": "0.0.0.0",
        "worker": WorkerSettings(poll_interval_s=0.05),
        "grace_s": 0.0,
    }
    return ServerSettings(**given | changes)


@contextlib.contextmanager
def running(
    folder: Path,
    seconds: float = 0.0,
    *,
    engine_factory: EngineFactory | None = None,
    **changes: Any,
) -> Generator[str]:
    """The address of a server whose engine paints nothing, unless there is a factory of another.

    Args:
        folder: its data.
        seconds: of a step.
        engine_factory: makes another engine.
        changes: of its settings.
    """
    settings = settings_for(folder, **{"models": ("miniature", "sdxl")} | changes)
    app = create_app(settings, engine_factory or partial(ScriptedEngine, seconds))
    config = uvicorn_config(app, settings)
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


def client_of(
    folder: Path,
    seconds: float = 0.0,
    *,
    engine_factory: EngineFactory | None = None,
    traces: TraceExporter | None = None,
    base_url: str = "http://testserver",
    **changes: Any,
) -> TestClient:
    """A client of a server in this process; for the arguments see `running`."""
    settings = settings_for(folder, **changes)
    app = create_app(settings, engine_factory or partial(ScriptedEngine, seconds), traces)
    return TestClient(app, base_url=base_url)


def until(true: Callable[[], object]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
