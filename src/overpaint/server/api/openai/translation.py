"""Translation of OpenAI's fields to a `Request` and to the options of its output."""

import re

from overpaint.errors import RequestError
from overpaint.imaging import codec
from overpaint.imaging.mask_files import encode_transparency
from overpaint.picture import Picture
from overpaint.request import Request
from overpaint.server.api.extended_fields import FieldMapping, build_request
from overpaint.server.api.fields import check_mask_size
from overpaint.server.api.ignored_fields import report_ignored
from overpaint.server.api.image_inputs import find_remote_urls, load_image
from overpaint.server.api.openai.protocol import (
    LINK_MODELS,
    NATIVE_FIELDS,
    STEPS_BY_QUALITY,
    Edit,
    EditFields,
    Generation,
    ImageFields,
    ImageReference,
    JsonEdit,
    Variation,
)
from overpaint.server.api.results import get_file_kind
from overpaint.server.jobs.service import Service
from overpaint.server.outbound.image_fetch import ImageSources
from overpaint.server.store.files import HASH_PATTERN
from overpaint.server.store.origins import OutputOptions

MAX_COMPRESSION_QUALITY = 100
"""Value of `output_compression` that loses nothing, which PNG files have anyway."""

SIZE_PATTERN = re.compile(r"(\d+)x(\d+)")


def to_request(given: ImageFields, sources: ImageSources) -> tuple[Request, dict[str, str]]:
    """Translate a client's fields to a request.

    Args:
        given: the fields that the client sent.
        sources: uploads and fetched images.

    Returns:
        The request, and the client's name for each translated field of `Request`.

    Raises:
        RequestError: a field is out of range or contradicts another one. The error names the
            client's field.
        PictureError: an image cannot be read.
    """
    return build_request(given, _map_fields(given, sources), NATIVE_FIELDS, sources)


def _map_fields(given: ImageFields, sources: ImageSources) -> list[FieldMapping]:
    mapped: list[FieldMapping] = []
    if given.n is not None:
        mapped.append(("n", "num_images", given.n))
    if given.size in ("native", "keep"):
        mapped.append(("size", "size", given.size))
    elif given.size not in (None, "auto"):
        sides = SIZE_PATTERN.fullmatch(given.size)
        if sides is None:
            raise RequestError(
                "size", f'{given.size!r} is not a size; write "1024x1024", or leave size out.'
            )
        mapped += [("size", "width", int(sides[1])), ("size", "height", int(sides[2]))]
    if given.steps is not None:
        native = "num_inference_steps" if isinstance(given.steps, int) else "steps"
        mapped.append(("steps", native, given.steps))
    if given.scheduler is not None:
        mapped.append(("scheduler", "sampler", given.scheduler))
    if isinstance(given, Generation):
        mapped.append(("prompt", "prompt", given.prompt))
        if given.quality in STEPS_BY_QUALITY:
            mapped.append(("quality", "num_inference_steps", STEPS_BY_QUALITY[given.quality]))
    if isinstance(given, Edit | JsonEdit | Variation):
        name, source = _get_image(given)
        image = _load_image(name, source, sources)
        mapped.append((name, "image", image))
        if isinstance(given, EditFields) and (mask := _find_mask(given, image, sources)):
            mapped.append(mask)
    return mapped


def _get_image(given: Edit | JsonEdit | Variation) -> tuple[str, bytes | ImageReference]:
    """Return the image to repaint and its field, and report the other images."""
    if not isinstance(given, JsonEdit):
        return "image", given.image
    report_ignored(*(f"images.{place}" for place in range(1, len(given.images))))
    return "images", given.images[0]


def find_image_urls(given: ImageFields) -> dict[str, str]:
    """Return the URLs of the image and of the mask that the server must fetch, by their fields."""
    if not isinstance(given, JsonEdit):
        return {}
    mask = given.mask.image_url if given.mask else None
    return find_remote_urls({"images": given.images[0].image_url, "mask": mask})


def _load_image(name: str, source: bytes | ImageReference, sources: ImageSources) -> Picture:
    if isinstance(source, bytes):
        return codec.receive_picture(source, name)
    if source.image_url:
        return load_image(name, source.image_url, sources)
    if source.file_id and HASH_PATTERN.fullmatch(source.file_id):
        return codec.receive_picture(sources.files.get(source.file_id), name)
    message = "it needs an image_url, or the file_id of an upload to /v1/files."
    raise RequestError(name, message)


def _find_mask(given: EditFields, image: Picture, sources: ImageSources) -> FieldMapping | None:
    """Return the mask of an edit: its own, or the image if that has transparent pixels."""
    if isinstance(given, Edit | JsonEdit) and given.mask is not None:
        mask = _load_image("mask", given.mask, sources)
        return "mask", "mask", _read_mask(mask, image)
    native = given.model_extra or {}
    if any(native.get(name) for name in ("mask_from", "extend")):
        return None
    mask = encode_transparency(image)
    return None if mask is None else ("image", "mask", mask)


def _read_mask(mask: Picture, image: Picture) -> Picture:
    """Read a mask. It needs transparency: in this dialect, brightness marks nothing.

    A request reads white strokes on a clear layer in another way, so that it gets a gray mask.
    """
    check_mask_size(image, mask)
    if (gray := encode_transparency(mask)) is None:
        raise RequestError(
            "mask", "The mask is opaque everywhere; make the area to repaint transparent."
        )
    return gray


def output_options(given: ImageFields, request: Request) -> OutputOptions:
    """Return the file format, the encoder options and the preview interval of a job.

    Raises:
        RequestError: fields contradict each other.
    """
    if not isinstance(given, Generation):
        return OutputOptions()
    kind = given.output_format or "png"
    options: dict[str, int] = {}
    if kind != "png" and given.output_compression is not None:
        options["quality"] = given.output_compression
    elif given.output_compression == MAX_COMPRESSION_QUALITY:
        report_ignored("output_compression")
    elif given.output_compression is not None:
        raise RequestError(
            "output_compression",
            "This field has no effect on PNG files; leave it out, or choose jpeg or webp.",
        )
    previews = given.partial_images or 0
    if previews and (not given.stream or request.num_images > 1):
        report_ignored("partial_images")
        previews = 0
    every = max(1, request.steps_to_run // (previews + 1)) if previews else 0
    return OutputOptions(kind=get_file_kind(kind), options=options, preview_every=every)


def resolve_response_format(service: Service, given: ImageFields) -> str:
    """Return "url" or "b64_json", and report a format that a stream cannot have."""
    if isinstance(given, Generation) and given.stream:
        if given.response_format == "url":
            report_ignored("response_format")
        return "b64_json"
    is_link_model = given.model in LINK_MODELS and given.model not in service.settings.models
    return given.response_format or ("url" if is_link_model else "b64_json")
