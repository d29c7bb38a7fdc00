"""The HTTP server: the application with all dialects, and how uvicorn runs it."""

import asyncio
import errno
import gc
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from importlib.metadata import version
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.middleware.cors import CORSMiddleware
from uvicorn.server import HANDLED_SIGNALS

from overpaint.engine.worker import EngineFactory
from overpaint.network.addresses import is_loopback
from overpaint.server.api import docs_page, metrics
from overpaint.server.api.a1111 import A1111
from overpaint.server.api.fal import FAL
from overpaint.server.api.ignored_fields import IGNORED_HEADER
from overpaint.server.api.native import NATIVE
from overpaint.server.api.openai import OPENAI
from overpaint.server.api.replicate import COG, REPLICATE
from overpaint.server.http import counting
from overpaint.server.http.access_log import AccessLogMiddleware
from overpaint.server.http.body_limit import BodyLimitMiddleware
from overpaint.server.http.connection import count_possible_connections, make_protocol_class
from overpaint.server.http.head_requests import HeadMiddleware
from overpaint.server.http.host_origin import HostOriginMiddleware, spell_origin
from overpaint.server.http.listening import bind_sockets, make_address_error
from overpaint.server.http.problems import install_error_handlers
from overpaint.server.http.request_budget import RequestBudget
from overpaint.server.http.request_target import RequestTargetMiddleware
from overpaint.server.http.response_headers import SecurityHeadersMiddleware
from overpaint.server.http.threads import SERVER_KEY, current_key, run_in_write_thread
from overpaint.server.jobs.service import Service
from overpaint.server.jobs.store_access import explain_store_errors
from overpaint.server.jobs.webhooks import WebhookSender
from overpaint.server.settings import ServerSettings
from overpaint.server.store.api_keys import ApiKeys
from overpaint.server.telemetry.logs import log_and_continue
from overpaint.system.malloc import FIRST_PAUSE_S, MAX_PAUSE_S, limit_heaps, release_memory
from overpaint.system.signals import STOP_SIGNALS

if TYPE_CHECKING:
    from overpaint.server.telemetry.traces import TraceExporter  # Its libraries are optional.

DIALECTS = (NATIVE, REPLICATE, OPENAI, COG, FAL, A1111)
"""All dialects that the server speaks, in the order in which their routes are matched.

`GET /v1/models` is Replicate's route, whose response contains OpenAI's fields too.
"""

READER_THREADS = 16
"""asyncio's default threads, which read the store and files."""

GC_THRESHOLDS = (300, 2, 100_000)
"""Thresholds of Python's garbage collector.

With a thousand event streams, a full collection blocks the server for 300 ms, and by default one
starts every few seconds. Now only `release_memory` starts full collections, less often if they take
long. The pauses of the younger generations grow with these numbers: beside a thousand hostile
clients up to 78 ms with (1000, 30), and 12 ms with (300, 2)."""

SWITCH_INTERVAL_S = 0.001
"""Seconds for which a thread waits, at most, until the event loop's thread lets it run: Python's
default, 5 ms, at each call of SQLite."""

ROUTERS = (*(each.router for each in DIALECTS), metrics.router, docs_page.router)

EXPOSED_HEADERS = ("Location", "Retry-After", "X-Request-ID", "X-Fal-Request-Id", IGNORED_HEADER)
"""Response headers that pages of other origins may read."""


def create_app(
    settings: ServerSettings,
    engine_factory: EngineFactory | None = None,
    traces: "TraceExporter | None" = None,
) -> FastAPI:
    """Return the application; its `Service` starts and ends with it.

    Args:
        settings: of the server. Without keys, here or in the store, requests need none.
        engine_factory: makes the worker's engine, in its process; by default the one that paints.
        traces: where spans go. They are closed with the application.
    """
    payloads = {each.name: each.webhook_payload for each in DIALECTS if each.webhook_payload}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        current_key.set(SERVER_KEY)
        readers = ThreadPoolExecutor(READER_THREADS, "overpaint-read")
        asyncio.get_running_loop().set_default_executor(readers)
        with explain_store_errors(settings.data):
            service = await asyncio.to_thread(Service, settings, engine_factory, traces)
        app.state.service = service
        app.state.keys = ApiKeys(
            service.jobs.database, settings.api_keys, settings.database.key_cache_s
        )
        try:
            async with WebhookSender(service, payloads).running(), _run_routers(app):
                beside = [
                    asyncio.create_task(
                        run_periodically(
                            service.retention.remove_expired, settings.database.cleanup_interval_s
                        )
                    ),
                    asyncio.create_task(trim_memory()),
                    # These only read the store, so they do not wait behind changes of it.
                    asyncio.create_task(
                        run_periodically(
                            service.retention.remove_unknown_files,
                            settings.database.file_cleanup_interval_s,
                            asyncio.to_thread,
                        )
                    ),
                    asyncio.create_task(
                        run_periodically(service.look, service.poll, asyncio.to_thread)
                    ),
                ]
                try:
                    yield
                finally:
                    for task in beside:
                        task.cancel()
                    await asyncio.to_thread(service.drain)
        finally:
            await asyncio.to_thread(service.close)
            if traces:
                await asyncio.to_thread(traces.close)

    tags = [{"name": each.tag, "description": each.description} for each in DIALECTS]
    app = FastAPI(
        title="Overpaint",
        version=version("overpaint"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        # All applications share these routes: `include_router` would make each one again, 0.2 s.
        routes=[route for router in ROUTERS for route in router.routes],
        openapi_tags=[*tags, {"name": "health", "description": "Health checks and metrics."}],
    )
    install_error_handlers(app)
    app.state.settings = settings
    app.state.answers = counting.ResponseCounts()
    app.state.listeners = Counter[str]()
    app.state.max_connections = settings.http.max_connections or count_possible_connections()
    app.state.connections_per_key = max(1, app.state.max_connections // 2)
    app.state.budget = RequestBudget(settings.pending_body_bytes, app.state.connections_per_key)
    app.add_middleware(
        BodyLimitMiddleware, max_bytes=settings.limits.body_bytes, settings=settings.http
    )
    app.add_middleware(HeadMiddleware)
    origins = {each for origin in settings.allowed_origins for each in spell_origin(origin)}
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["*"],
        allow_headers=["*"],
        allow_private_network=True,
        expose_headers=EXPOSED_HEADERS,
    )
    app.add_middleware(HostOriginMiddleware, hosts=_accepted_hosts(settings), origins=origins)
    app.add_middleware(AccessLogMiddleware)
    if traces:
        from overpaint.server.http.tracing import TracingMiddleware

        app.add_middleware(TracingMiddleware, traces=traces)
    app.add_middleware(counting.ResponseCounterMiddleware, answers=app.state.answers)
    app.add_middleware(RequestTargetMiddleware)
    app.add_middleware(SecurityHeadersMiddleware)

    @app.get("/healthz", tags=["health"], summary="Liveness check")
    async def healthz() -> dict[str, str]:  # pyright: ignore[reportUnusedFunction]
        """Return 200 while the server process runs."""
        return {"status": "alive"}

    @app.get(
        "/readyz",
        tags=["health"],
        summary="Readiness check",
        responses={503: {"description": "The server is not ready."}},
    )
    async def readyz() -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        """Return 200 if the server accepts and runs jobs, otherwise 503 with the reasons."""
        service: Service = app.state.service
        why = await asyncio.to_thread(service.unready)
        shown = {"status": "not ready" if why else "ready", "why": why}
        return JSONResponse(shown, 503 if why else 200)

    return app


@asynccontextmanager
async def _run_routers(app: FastAPI) -> AsyncGenerator[None]:
    """Run what the routers start and end with an application."""
    async with AsyncExitStack() as running:
        for router in ROUTERS:
            await running.enter_async_context(router.lifespan_context(app))
        yield


class Server(uvicorn.Server):
    """Stops in order: refuses new jobs, waits for running ones, then closes event streams.

    A second signal ends the wait for jobs. The server starts and ends the application itself:
    uvicorn would write the traceback of an error in between.
    """

    def __init__(self, config: uvicorn.Config):
        """Prepare; nothing runs before `run`."""
        super().__init__(config)
        self._running = AsyncExitStack()

    @property
    def service(self) -> Service | None:
        """The service, once it runs."""
        app: Any = self.config.app
        return getattr(app.state, "service", None)

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Handle all stop signals alike, except those that the caller ignores (as nohup does)."""
        own = [
            number
            for number in STOP_SIGNALS
            if number not in HANDLED_SIGNALS and signal.getsignal(number) is not signal.SIG_IGN
        ]
        if threading.current_thread() is not threading.main_thread():
            own = []
        before = {number: signal.signal(number, self.handle_exit) for number in own}
        try:
            with super().capture_signals():
                yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal to stop."""
        if self.should_exit and (service := self.service):
            service.supervisor.hurry()
        # uvicorn raises the signal again at the end; SIGQUIT would dump the memory then.
        super().handle_exit(sig if sig in HANDLED_SIGNALS else signal.SIGTERM, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then listen.

        Raises:
            OverpaintError: the application cannot start.
            RequestError: another program listens on the port.
        """
        app: Any = self.config.app
        try:
            await self._running.enter_async_context(app.router.lifespan_context(app))
            await super().startup(sockets)
        except BaseException as error:
            for each in sockets or ():
                each.close()
            await self._running.aclose()
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                raise make_address_error(self.config.host, self.config.port, error) from error
            raise

    async def on_tick(self, counter: int) -> bool:
        """Return whether to stop: a signal came, or the first worker could not start."""
        stopped = self.service is not None and self.service.supervisor.start_error is not None
        return await super().on_tick(counter) or stopped

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop. The server answers clients until the running jobs have ended."""
        if service := self.service:
            await asyncio.to_thread(service.drain)
        await super().shutdown(sockets)
        await self._running.aclose()


def run(
    settings: ServerSettings,
    engine_factory: EngineFactory | None = None,
    traces: "TraceExporter | None" = None,
    sockets: list[socket.socket] | None = None,
) -> None:
    """Serve until a signal comes.

    Args:
        settings: of the server.
        engine_factory: see `create_app`.
        traces: see `create_app`.
        sockets: from `bind_sockets`; by default `run` calls it.

    Raises:
        OverpaintError: the server cannot start, or its first worker cannot.
    """
    sockets = bind_sockets(settings.host, settings.port) if sockets is None else sockets
    app = create_app(settings, engine_factory, traces)
    limit_heaps(serves=True)
    gc.collect()
    gc.freeze()  # All objects made so far stay for the life of the process.
    gc.set_threshold(*GC_THRESHOLDS)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    server = Server(uvicorn_config(app, settings))
    server.run(sockets)
    if server.service and (error := server.service.supervisor.start_error):
        raise error


def _accepted_hosts(settings: ServerSettings) -> Collection[str] | None:
    """Return the host names that the server answers to, beside those of loopback; None for any.

    On a loopback address there is no other name by default, which defends against DNS rebinding.
    """
    return settings.allowed_hosts if settings.allowed_hosts or is_loopback(settings.host) else None


def uvicorn_config(app: FastAPI, settings: ServerSettings) -> uvicorn.Config:
    """Configure how uvicorn handles connections."""
    return uvicorn.Config(
        app,
        settings.host,
        settings.port,
        http=make_protocol_class(settings.http, app.state.max_connections),
        h11_max_incomplete_event_size=settings.limits.request_head_bytes,
        lifespan="off",  # `Server` does it.
        log_config=None,
        log_level="warning",
        access_log=False,
        ws="none",  # A WebSocket handshake is answered like any GET request.
        timeout_keep_alive=settings.http.keep_alive_s,
        timeout_graceful_shutdown=settings.http.shutdown_timeout_s,
    )


async def trim_memory() -> None:
    """Return unused memory to the system periodically."""
    pause = FIRST_PAUSE_S
    while True:
        await asyncio.sleep(pause)
        pause = MAX_PAUSE_S
        with log_and_continue():
            pause = await asyncio.to_thread(release_memory)


async def run_periodically(
    do: Callable[[], object],
    pause: float,
    run: Callable[[Callable[[], object]], Awaitable[object]] = run_in_write_thread,
) -> None:
    """Call a function in a thread again and again, with a pause in seconds between the calls.

    Args:
        do: the function.
        pause: seconds.
        run: runs it in a thread.
    """
    while True:
        with log_and_continue():
            await run(do)
        await asyncio.sleep(pause)
