"""The options of AUTOMATIC1111's API: each API key has its own, until the server stops."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi import Request as Incoming

from overpaint.server.api.a1111.protocol import Options, error_response
from overpaint.server.api.a1111.translation import resolve_model_title
from overpaint.server.api.deps import ServiceDep
from overpaint.server.api.route import make_route_class
from overpaint.server.http.auth import KeyDep
from overpaint.server.jobs.service import Service


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Keep the options on the application while it runs."""
    app.state.a1111_options = dict[str, Options]()
    yield


router = APIRouter(
    prefix="/sdapi/v1", route_class=make_route_class(error_response), lifespan=lifespan
)


def get_options(incoming: Incoming, key: str) -> Options:
    """Return the options of an API key."""
    by_key: dict[str, Options] = incoming.app.state.a1111_options
    return by_key.get(key, Options())


def store_options(incoming: Incoming, key: str, options: Options) -> None:
    """Keep the options of an API key until the server stops."""
    incoming.app.state.a1111_options[key] = options


def override_options(options: Options, given: Options) -> Options:
    """Return options in which the given ones replace the others."""
    return options.model_copy(
        update={name: getattr(given, name) for name in given.model_fields_set}
    )


def resolve_model(service: Service, options: Options) -> str:
    """Return the name of the model that options name, by default the server's first model.

    Raises:
        RequestError: the server has no such model.
    """
    models = service.settings.models
    if not options.sd_model_checkpoint:
        return models[0]
    field = "override_settings.sd_model_checkpoint"
    return resolve_model_title(field, options.sd_model_checkpoint, models)


@router.get("/options")
async def read_options(incoming: Incoming, service: ServiceDep, key: KeyDep) -> Options:
    """Return the options of this API key."""
    options = get_options(incoming, key)
    return options.model_copy(update={"sd_model_checkpoint": resolve_model(service, options)})


@router.post("/options")
async def set_options(
    given: Options, incoming: Incoming, service: ServiceDep, key: KeyDep
) -> dict[str, Any]:
    """Set options for later requests of this API key, until the server stops."""
    options = override_options(get_options(incoming, key), given)
    resolve_model(service, options)
    store_options(incoming, key, options)
    return {}
