"""The options of AUTOMATIC1111's API: each API key has its own, until the server stops."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi import Request as Incoming

from overpaint.errors import RequestError
from overpaint.server.api.a1111.listings import list_names
from overpaint.server.api.a1111.model_titles import resolve_model_title
from overpaint.server.api.a1111.option_fields import Options, override_options
from overpaint.server.api.a1111.protocol import error_response
from overpaint.server.api.a1111.translation import NO_VAE
from overpaint.server.api.deps import ServiceDep
from overpaint.server.api.ignored_fields import report_ignored, report_ignored_fields
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


def resolve_model(service: Service, given: Options, kept: Options) -> str:
    """Return the name of the model of a request.

    Args:
        service: the running service.
        given: options of the request.
        kept: options of the API key. A kept model that the server has no more counts as absent.

    Raises:
        RequestError: the server has no model of the name that the request gives.
    """
    models = service.settings.models
    field = "override_settings.sd_model_checkpoint"
    if given.sd_model_checkpoint:
        return resolve_model_title(field, given.sd_model_checkpoint, models)
    try:
        return resolve_model_title(field, kept.sd_model_checkpoint or models[0], models)
    except RequestError:
        return models[0]


def check_vae(service: Service, given: Options) -> None:
    """Check the VAE of options, and report one that changes nothing.

    Raises:
        RequestError: the server has no such VAE.
    """
    if given.sd_vae.lower() not in NO_VAE:
        resolve_model_title("sd_vae", given.sd_vae, list_names(service, "vae"))
    elif "sd_vae" in given.model_fields_set:
        report_ignored("sd_vae")


@router.get("/options")
async def read_options(incoming: Incoming, service: ServiceDep, key: KeyDep) -> Options:
    """Return the options of this API key."""
    options = get_options(incoming, key)
    model = resolve_model(service, Options(), options)
    return options.model_copy(update={"sd_model_checkpoint": model})


@router.post("/options")
async def set_options(
    given: Options, incoming: Incoming, service: ServiceDep, key: KeyDep
) -> dict[str, Any]:
    """Set options for later requests of this API key, until the server stops."""
    report_ignored_fields(given)
    options = get_options(incoming, key)
    resolve_model(service, given, options)
    await asyncio.to_thread(check_vae, service, given)
    store_options(incoming, key, override_options(options, given))
    return {}
