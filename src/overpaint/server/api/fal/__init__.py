"""fal's queue and synchronous API."""

from fastapi import APIRouter

from overpaint.server.api.dialect import Dialect
from overpaint.server.api.fal import protocol, routes, storage

router = APIRouter()
for part in (routes, storage):
    router.include_router(part.router)

FAL = Dialect(
    name="fal",
    tag="fal",
    description="Compatible with fal's clients: the queue under `/fal/queue`, synchronous calls "
    "under `/fal/run`.",
    router=router,
    webhook_payload=protocol.webhook_payload,
)
"""fal's API."""
