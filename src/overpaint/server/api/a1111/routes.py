"""The routes of AUTOMATIC1111's API.

| Route | Effect |
|---|---|
| `POST /sdapi/v1/txt2img`, `/img2img` | make images and return them |
| `GET /sdapi/v1/progress`, `POST /internal/progress` | return the progress of a request |
| `POST /sdapi/v1/interrupt`, `/skip` | cancel the request that the client sees or names |
| `GET`, `POST /sdapi/v1/options` | model, clip skip and file format of the key's next requests |
| `GET /sdapi/v1/sd-models`, `/samplers`, `/loras`, … | list names that requests can use |
| `POST /sdapi/v1/png-info` | read the settings of an image |

The web UI has one user. Here every API key has its own options and progress.
"""

import asyncio
from typing import Any

from fastapi import APIRouter

from overpaint.errors import RequestError
from overpaint.imaging import codec
from overpaint.provenance.importers.a1111 import split_parameters
from overpaint.provenance.picture_texts import extract_texts
from overpaint.server.api.a1111 import (
    controlnet_generation,
    controlnet_routes,
    generation,
    listings,
    options,
    progress,
    tasks,
)
from overpaint.server.api.a1111.image_fields import decode_image
from overpaint.server.api.a1111.protocol import ERROR_SCHEMA, PngInfoRequest, error_response
from overpaint.server.api.a1111.responses import PngInfoResponse
from overpaint.server.api.deps import ServiceDep
from overpaint.server.api.ignored_fields import report_ignored_fields
from overpaint.server.api.route import make_route_class
from overpaint.server.http.auth import KeyDep
from overpaint.server.http.problems import error_responses
from overpaint.server.http.threads import run_in_picture_thread

MAX_TEXT_CHARS = 1_000_000
"""Characters of all texts of a picture that `/png-info` returns. Texts are compressed: 62 KB of a
file can be 60 MB of text."""

router = APIRouter(
    tags=["AUTOMATIC1111"],
    route_class=make_route_class(error_response),
    responses=error_responses(ERROR_SCHEMA),
    lifespan=tasks.lifespan,
)
sdapi = APIRouter(prefix="/sdapi/v1", route_class=make_route_class(error_response))


@sdapi.post("/png-info")
async def read_png_info(given: PngInfoRequest, key: KeyDep) -> PngInfoResponse:
    """Read the settings of an image."""
    report_ignored_fields(given)

    def read() -> PngInfoResponse:
        data = decode_image("image", given.image)
        with codec.open_image(
            data, "the image", codec.UPLOAD_FORMATS, codec.MAX_UPLOAD_PIXELS, texts=True
        ) as image:
            image.load()
            items = extract_texts(image)
        if sum(map(len, items.values())) > MAX_TEXT_CHARS:
            raise RequestError(
                "image", f"Its texts have more than {MAX_TEXT_CHARS:,} characters together."
            )
        text = items.get("parameters", "")
        parts = split_parameters(text)
        return PngInfoResponse(info=text, items=items, parameters=parts.pairs if parts else {})

    return await run_in_picture_thread(read)


@router.get("/queue/status")
async def get_queue_status(service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """Return the number of waiting jobs. A Krita plug-in detects the server by this route."""
    counts = await asyncio.to_thread(service.jobs.count_by_state)
    return {"msg": "estimation", "queue_size": counts["queued"]}


for part in (
    sdapi,
    generation.router,
    progress.sdapi,
    progress.internal,
    options.router,
    listings.router,
    controlnet_routes.router,
    controlnet_generation.router,
):
    router.include_router(part)
