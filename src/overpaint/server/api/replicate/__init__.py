"""Replicate's HTTP API and the HTTP API of cog containers."""

from fastapi import APIRouter

from overpaint.server.api.dialect import Dialect
from overpaint.server.api.replicate import (
    account_routes,
    cog_routes,
    file_routes,
    protocol,
    routes,
)

router = APIRouter()
for part in (routes, file_routes, account_routes):
    router.include_router(part.router)

REPLICATE = Dialect(
    name="replicate",
    tag="Replicate",
    description="Compatible with Replicate's HTTP API, and with Synexa's client.",
    router=router,
    webhook_payload=protocol.webhook_payload,
)
"""Replicate's HTTP API."""

COG = Dialect(
    name="cog",
    tag="cog",
    description="Compatible with the HTTP API of a [cog](https://github.com/replicate/cog) "
    "container that serves this server's first model.",
    router=cog_routes.router,
    webhook_payload=cog_routes.webhook_payload,
)
"""The HTTP API of cog containers."""
