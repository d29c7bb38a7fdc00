"""The file format of a request's images."""

from collections.abc import Sequence
from pathlib import Path

from overpaint.errors import OutputError, RequestError
from overpaint.imaging import codec
from overpaint.provenance.metadata import check_settings_length
from overpaint.request import Request
from overpaint.server.api.a1111.option_fields import Options
from overpaint.server.api.ignored_fields import report_ignored
from overpaint.server.api.results import get_file_kind

MAX_WEBP_SIDE_PX = 16383
"""Largest side of a WebP file."""


def choose_format(requests: Sequence[Request], chosen: Options, given: Options) -> str:
    """Return the suffix of a request's image files: png, jpg or webp.

    Args:
        requests: of the jobs.
        chosen: options that apply to the request.
        given: options of the request alone. If a kept format cannot hold the images, they are PNG.

    Raises:
        RequestError: the format that the request gives cannot hold the images.
    """
    kind = get_file_kind(chosen.samples_format)
    try:
        for request in requests:
            _check_format(kind, request)
    except RequestError:
        if "samples_format" in given.model_fields_set:
            raise
        report_ignored("samples_format")
        return "png"
    return kind


def _check_format(kind: str, request: Request) -> None:
    """Check that files of a format can hold a request's images and settings.

    Raises:
        RequestError: they cannot.
    """
    field = "override_settings.samples_format"
    if kind == "webp" and (side := _longest_side(request)) > MAX_WEBP_SIDE_PX:
        raise RequestError(
            field,
            f"A WebP side ends at {MAX_WEBP_SIDE_PX:,} pixels, and this image has up to {side:,}. "
            "Choose png.",
        )
    try:
        check_settings_length(Path(f"image.{kind}"), request)
    except OutputError as error:
        raise RequestError(field, str(error)) from None


def _longest_side(request: Request) -> int:
    own = codec.upright_size(request.image) if request.image else ()
    first = request.upscale * max(request.width or 0, request.height or 0, *own, 0)
    return max(round(first), *(request.upscale_to or (0,)))
