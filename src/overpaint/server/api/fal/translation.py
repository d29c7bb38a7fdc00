"""Translation of fal's arguments to a `Request`."""

from collections.abc import Sequence
from typing import Any

from overpaint.errors import RequestError
from overpaint.request import Request
from overpaint.server.api.extended_fields import FieldMapping, build_request
from overpaint.server.api.fal.protocol import NATIVE_FIELDS, SIZES_BY_NAME, Arguments, ImageSize
from overpaint.server.api.fields import parse_size, stretch_mask
from overpaint.server.api.ignored_fields import report_ignored, report_ignored_fields
from overpaint.server.api.image_inputs import load_image
from overpaint.server.outbound.image_fetch import ImageSources

DEFAULT_STRENGTH = 0.95
"""Default of `strength` in fal's image-to-image apps."""


def to_request(
    given: Arguments, sources: ImageSources, required: Sequence[str] = ()
) -> tuple[Request, dict[str, str]]:
    """Translate arguments to a request.

    Args:
        given: the arguments that the client sent.
        sources: uploads and fetched images.
        required: arguments that the task requires.

    Returns:
        The request, and the argument that each translated field of `Request` came from.

    Raises:
        RequestError: an argument is missing, out of range or contradicts another one. The error
            names the argument.
        PictureError: an image cannot be read.
    """
    found = {"image_url": given.repainted_url, "mask_url": given.mask_url}
    for name in required:
        if found[name] is None:
            raise RequestError(name, "This task requires the argument; send it.")
    if given.mask_url is not None and given.repainted_url is None:
        raise RequestError("mask_url", "A mask needs an image to repaint; send image_url too.")
    try:
        return build_request(given, _map_fields(given, sources), NATIVE_FIELDS, sources)
    except RequestError as error:
        raise translate_nested_error(error, given) from None


def report_unused_arguments(given: Arguments) -> None:
    """Report arguments that have no effect, and images that are not repainted."""
    report_ignored_fields(given)
    if given.format and given.output_format:
        report_ignored("output_format")
    if given.seed is not None and given.seed < 0:
        report_ignored("seed")
    first = 0 if given.image_url else 1
    report_ignored(*(f"image_urls.{index}" for index in range(first, len(given.image_urls))))


def translate_nested_error(error: RequestError, given: Arguments) -> RequestError:
    """Name the argument in an error about a LoRA or a webhook; other errors stay unchanged."""
    head, _, rest = error.field.partition(".")
    if head == "webhook":
        field = "fal_webhook"
    elif head == "loras":
        index, _, part = rest.partition(".")
        listed = index.isdecimal() and int(index) < len(given.loras)
        # The request also lists the LoRAs of the prompt's <lora:…> tags, after the others.
        field = f"loras.{index}.{'path' if part == 'name' else part}" if listed else "prompt"
    else:
        return error
    return RequestError(field, error.message)


def _map_size(given: Arguments) -> list[FieldMapping]:
    """Return the fields of the size. A size in pixels has no effect beside image_size."""
    mapped: list[FieldMapping] = []
    size, name = given.image_size, "image_size"
    if given.size in ("native", "keep"):
        mapped.append(("size", "size", given.size))
    elif given.size == "auto" or (given.size and size):
        report_ignored("size")
    elif given.size:
        width, height = parse_size("size", given.size)
        size, name = ImageSize(width=width, height=height), "size"
    if size is not None:
        sides = (size.width, size.height) if isinstance(size, ImageSize) else SIZES_BY_NAME[size]
        mapped += [(name, n, v) for n, v in zip(("width", "height"), sides, strict=True)]
    return mapped


def _map_fields(given: Arguments, sources: ImageSources) -> list[FieldMapping]:
    same = ("prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "num_images")
    mapped: list[FieldMapping] = [(name, name, getattr(given, name)) for name in same]
    if given.strength is not None:
        mapped.append(("strength", "strength", given.strength))
    if given.seed is not None and given.seed >= 0:
        mapped.append(("seed", "seed", given.seed))
    if given.scheduler is not None:
        mapped.append(("scheduler", "sampler", given.scheduler))
    mapped += _map_size(given)
    if loras := [{"name": lora.path, "scale": lora.scale} for lora in given.loras]:
        mapped.append(("loras", "loras", loras))
    if (url := given.repainted_url) is not None:
        name = "image_url" if given.image_url else "image_urls"
        image = load_image(name, url, sources)
        mapped.append((name, "image", image))
        defaults: dict[str, Any] = {"steps": "truncate"}
        if given.strength is None:
            defaults["strength"] = DEFAULT_STRENGTH
        if given.mask_url is not None:
            mask = stretch_mask(load_image("mask_url", given.mask_url, sources), image)
            mapped.append(("mask_url", "mask", mask))
            defaults["fill"] = "original"
        native = given.model_extra or {}
        mapped += [(name, name, value) for name, value in defaults.items() if name not in native]
    return mapped
