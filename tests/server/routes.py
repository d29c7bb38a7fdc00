"""All routes of an application, for tests of what every route does."""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

VALUES = {"event": "completed", "asset": "swagger-ui.css", "expires": "1"}
"""Values of parameters that a route would refuse otherwise."""


def list_routes(app: FastAPI) -> list[tuple[str, str]]:
    """Return method and path of every route, with a value for each parameter of the path."""
    found: list[tuple[str, str]] = []
    for context in iter_route_contexts(app.routes):
        route: Any = context

        def value(parameter: re.Match[str]) -> str:
            return VALUES.get(parameter[1], "0" * 32)

        path = re.sub(r"{(\w+)(?::\w+)?}", value, route.path)
        found += [(method, path) for method in sorted(route.methods)]
    return found
