"""Contract tests of framework internals that the server uses.

`pyproject.toml` bounds the versions of uvicorn and FastAPI. Run these tests before you raise a
bound; each failure says what to adapt.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.formparsers import MultiPartParser
from uvicorn import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState


def depended_on() -> int:
    return 1


async def endpoint(
    body: Annotated[dict[str, Any], Body()], value: Annotated[int, Depends(depended_on)]
) -> None: ...


def made_protocol() -> H11Protocol:
    config = Config(FastAPI(), log_config=None)
    config.load()
    return H11Protocol(config, ServerState(), {}, asyncio.new_event_loop())


def test_uvicorn_h11_protocol_has_the_attributes_that_the_stall_timeout_reads() -> None:
    protocol = made_protocol()
    used_in = "server/http/connection.py (TimeoutH11Protocol) reads it to find stalled clients"
    for name in ("loop", "transport", "flow", "cycle", "timeout_keep_alive_task"):
        assert hasattr(protocol, name), f"uvicorn's H11Protocol has no {name!r}; {used_in}."
    assert protocol.cycle is None, f"H11Protocol.cycle is not None before a request; {used_in}."
    protocol.loop.close()
    source = inspect.getsource(RequestResponseCycle.__init__)
    assert "self.response_complete" in source, (
        f"uvicorn's RequestResponseCycle has no response_complete; {used_in}."
    )
    assert "self.write_paused" in inspect.getsource(FlowControl.__init__), (
        f"uvicorn's FlowControl has no write_paused; {used_in}."
    )


def test_uvicorn_h11_protocol_calls_the_overridden_callbacks() -> None:
    for name in ("connection_made", "connection_lost"):
        assert name in vars(H11Protocol), (
            f"uvicorn's H11Protocol does not define {name}; TimeoutH11Protocol in "
            "server/http/connection.py overrides it to start and stop its timer."
        )


def test_fastapi_dependant_names_the_dependencies_of_a_route() -> None:
    route = APIRoute("/", endpoint, methods=["POST"])
    why = (
        "server/api/route.py reads it to check the API key before FastAPI reads a body; without "
        "it, clients without a key could make the server read 128 MiB."
    )
    assert isinstance(route.dependant, Dependant), f"APIRoute.dependant is no Dependant; {why}"
    assert [each.call for each in route.dependant.dependencies] == [depended_on], (
        f"Dependant.dependencies or Dependant.call changed; {why}"
    )
    assert route.body_field is not None, f"APIRoute.body_field changed; {why}"
    assert callable(route.get_route_handler()), f"APIRoute.get_route_handler changed; {why}"


def test_starlette_form_parser_says_too_many_when_a_form_has_too_many_parts() -> None:
    assert 'f"Too many ' in inspect.getsource(MultiPartParser), (
        "Starlette words the error for too many form parts differently; _shorten_error in "
        "server/api/route.py recognizes it by 'Too many ' to answer 413 in place of 400."
    )
