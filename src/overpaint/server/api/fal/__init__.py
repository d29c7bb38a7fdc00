"""fal's queue and synchronous API."""

from overpaint.server.api.dialect import Dialect
from overpaint.server.api.fal import protocol, routes

FAL = Dialect(
    name="fal",
    tag="fal",
    description="Compatible with fal's clients: the queue under `/fal/queue`, synchronous calls "
    "under `/fal/run`.",
    router=routes.router,
    webhook_payload=protocol.webhook_payload,
)
"""fal's API."""
