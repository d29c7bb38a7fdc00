"""Options."""

from typing import Any
from weakref import WeakKeyDictionary

from fastapi import APIRouter

from overpaint.server.api.a1111.protocol import Options, error_response
from overpaint.server.api.a1111.translation import named
from overpaint.server.api.deps import ServiceDep
from overpaint.server.api.route import make_route_class
from overpaint.server.http.auth import KeyDep
from overpaint.server.jobs.service import Service

router = APIRouter(prefix="/sdapi/v1", route_class=make_route_class(error_response))

OPTIONS: WeakKeyDictionary[Service, dict[str, Options]] = WeakKeyDictionary()
"""What every key has set, until the server ends."""


def options_of(service: Service, key: str) -> Options:
    """What holds for a key's requests."""
    return OPTIONS.get(service, {}).get(key, Options())


def overridden(options: Options, by: Options) -> Options:
    """Options with those that were given in place of their own."""
    return options.model_copy(update={name: getattr(by, name) for name in by.model_fields_set})


def model_of(service: Service, options: Options) -> str:
    """The model that options name.

    Raises:
        RequestError: it is not here.
    """
    models = service.settings.models
    if not options.sd_model_checkpoint:
        return models[0]
    field = "override_settings.sd_model_checkpoint"
    return named(field, options.sd_model_checkpoint, models)


@router.get("/options")
async def read_options(service: ServiceDep, key: KeyDep) -> Options:
    """What holds for the key's requests."""
    options = options_of(service, key)
    return options.model_copy(update={"sd_model_checkpoint": model_of(service, options)})


@router.post("/options")
async def set_options(given: Options, service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """Set some of them, for the key's requests, until the server ends."""
    options = overridden(options_of(service, key), given)
    model_of(service, options)
    OPTIONS.setdefault(service, {})[key] = options
    return {}
