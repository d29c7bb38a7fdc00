"""The options of AUTOMATIC1111's API: each API key has its own, until the server stops."""

from typing import Any
from weakref import WeakKeyDictionary

from fastapi import APIRouter

from overpaint.server.api.a1111.protocol import Options, error_response
from overpaint.server.api.a1111.translation import resolve_model_title
from overpaint.server.api.deps import ServiceDep
from overpaint.server.api.route import make_route_class
from overpaint.server.http.auth import KeyDep
from overpaint.server.jobs.service import Service

router = APIRouter(prefix="/sdapi/v1", route_class=make_route_class(error_response))

_OPTIONS_BY_KEY: WeakKeyDictionary[Service, dict[str, Options]] = WeakKeyDictionary()


def get_options(service: Service, key: str) -> Options:
    """Return the options of an API key."""
    return _OPTIONS_BY_KEY.get(service, {}).get(key, Options())


def store_options(service: Service, key: str, options: Options) -> None:
    """Keep the options of an API key until the server stops."""
    _OPTIONS_BY_KEY.setdefault(service, {})[key] = options


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
async def read_options(service: ServiceDep, key: KeyDep) -> Options:
    """Return the options of this API key."""
    options = get_options(service, key)
    return options.model_copy(update={"sd_model_checkpoint": resolve_model(service, options)})


@router.post("/options")
async def set_options(given: Options, service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """Set options for later requests of this API key, until the server stops."""
    options = override_options(get_options(service, key), given)
    resolve_model(service, options)
    store_options(service, key, options)
    return {}
