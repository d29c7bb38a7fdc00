"""The API of AUTOMATIC1111's web UI."""

from overpaint.server.api.a1111 import routes
from overpaint.server.api.dialect import Dialect

A1111 = Dialect(
    name="a1111",
    tag="AUTOMATIC1111",
    description="Compatible with the API of AUTOMATIC1111's Stable Diffusion web UI. It has no "
    "webhooks.",
    router=routes.router,
)
"""The API of AUTOMATIC1111's web UI."""
