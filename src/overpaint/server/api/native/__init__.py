"""The native API: every field of a request, live events, uploads by content hash."""

from overpaint.server.api.dialect import Dialect
from overpaint.server.api.native import routes, views

NATIVE = Dialect(
    name="native",
    tag="native",
    description="Overpaint's own API: every request field, live job events, uploads by content "
    "hash, webhooks and usage.",
    router=routes.router,
    webhook_payload=views.webhook_payload,
)
"""The native API."""
