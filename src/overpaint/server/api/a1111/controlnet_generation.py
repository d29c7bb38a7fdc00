"""Routes of the first versions of the ControlNet extension, which make images.

Their bodies have the units in a separate field, in place of `alwayson_scripts`. A plug-in for GIMP
sends them.
"""

from typing import Any

from fastapi import APIRouter
from fastapi import Request as Incoming
from pydantic import Field

from overpaint.server.api.a1111.generation import generate
from overpaint.server.api.a1111.protocol import ImageInputs, TextInputs, error_response
from overpaint.server.api.a1111.responses import GenerationResponse
from overpaint.server.api.deps import ServiceDep
from overpaint.server.api.route import make_route_class
from overpaint.server.http.auth import KeyDep

router = APIRouter(prefix="/controlnet", route_class=make_route_class(error_response))


class ControlledTextInputs(TextInputs):
    """Fields of txt2img, and ControlNet units."""

    controlnet_units: list[Any] = Field(default_factory=list, max_length=64, exclude=True)
    """ControlNet units (`controls`), as in `alwayson_scripts`."""


class ControlledImageInputs(ImageInputs):
    """Fields of img2img, and ControlNet units."""

    controlnet_units: list[Any] = Field(default_factory=list, max_length=64, exclude=True)
    """ControlNet units (`controls`), as in `alwayson_scripts`."""


@router.post("/txt2img")
async def controlled_txt2img(
    given: ControlledTextInputs, incoming: Incoming, service: ServiceDep, key: KeyDep
) -> GenerationResponse:
    """Make images from text, steered by ControlNet units."""
    return await generate(_with_script(given), incoming, service, key)


@router.post("/img2img")
async def controlled_img2img(
    given: ControlledImageInputs, incoming: Incoming, service: ServiceDep, key: KeyDep
) -> GenerationResponse:
    """Repaint an image, steered by ControlNet units."""
    return await generate(_with_script(given), incoming, service, key)


def _with_script(given: ControlledTextInputs | ControlledImageInputs) -> TextInputs | ImageInputs:
    """Return inputs whose units are in the always-on script."""
    if given.controlnet_units:
        given.alwayson_scripts = {"ControlNet": {"args": given.controlnet_units}}
    return given
