"""OpenAI's images API."""

from overpaint.server.api.dialect import Dialect
from overpaint.server.api.openai import protocol, routes

OPENAI = Dialect(
    name="openai",
    tag="OpenAI",
    description="Compatible with OpenAI's images API.",
    router=routes.router,
    webhook_payload=protocol.webhook_payload,
)
"""OpenAI's images API."""
