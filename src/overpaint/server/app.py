"""The HTTP server: a `Service` and the wire formats that it is spoken to in."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError

from overpaint.server import cog, native, replicate
from overpaint.server.service import Service, Settings
from overpaint.server.webhooks import Body, Courier
from overpaint.server.wire import answer_errors

BODIES: dict[str, Body] = {"native": native.told, "replicate": replicate.told, "cog": cog.told}
"""What is posted of jobs, by the wire format that they came by."""

TIDY = 60.0
"""Seconds between looks for what is too old to be kept."""


def create_app(settings: Settings, keys: Sequence[str] = ()) -> FastAPI:
    """The application.

    Args:
        settings: of the service, which starts and ends with it.
        keys: that clients must give one of; none are asked for where there are none.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        service = await asyncio.to_thread(Service, settings)
        app.state.service = service
        try:
            async with Courier(service, BODIES).posting():
                tidying = asyncio.create_task(keep_tidy(service))
                try:
                    yield
                finally:
                    tidying.cancel()
                    await asyncio.to_thread(service.drain)
        finally:
            await asyncio.to_thread(service.close)

    app = FastAPI(
        title="Overpaint", version=version("overpaint"), lifespan=lifespan, docs_url="/docs"
    )
    app.state.keys = tuple(hashlib.sha256(key.encode()).hexdigest() for key in keys)
    answer_errors(app)
    for wire in (native, replicate, cog):
        app.include_router(wire.router)

    @app.get("/healthz", tags=["health"])
    async def healthz() -> dict[str, str]:  # pyright: ignore[reportUnusedFunction]
        """Whether the server is alive."""
        return {"status": "alive"}

    @app.get("/readyz", tags=["health"])
    async def readyz() -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        """Whether it accepts jobs and can run them; if not, why."""
        service: Service = app.state.service
        why = await asyncio.to_thread(service.unready)
        shown = {"status": "not ready" if why else "ready", "why": why}
        return JSONResponse(shown, 503 if why else 200)

    return app


async def keep_tidy(service: Service) -> None:
    """Forget what is too old, now and then."""
    while True:
        with contextlib.suppress(SQLAlchemyError, OSError):  # out of order, and tried again
            await asyncio.to_thread(service.tidy)
        await asyncio.sleep(TIDY)
