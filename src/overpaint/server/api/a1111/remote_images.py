"""Images that inputs name by URL, as the web UI accepts them."""

import base64
from collections.abc import Callable, Mapping
from typing import Any, cast

from overpaint.server.api.a1111.protocol import CONTROLNET_FIELD, ImageInputs, TextInputs
from overpaint.server.api.image_inputs import REMOTE_URL

MAX_NESTING = 4
"""Depth of an image in the arguments of a script: `args`, the unit, `image`, `image`."""

Change = Callable[[str, str], str]
"""Returns the text in place of a URL, given its field."""


def find_image_urls(given: TextInputs | ImageInputs) -> dict[str, str]:
    """Return the URLs of images, by the fields that have them."""
    found: dict[str, str] = {}

    def note(field: str, url: str) -> str:
        found[f"{field}.{len(found)}" if field in found else field] = url
        return url

    _replace_urls(given, note)
    return found


def inline_images(
    given: TextInputs | ImageInputs, fetched: Mapping[str, bytes]
) -> TextInputs | ImageInputs:
    """Return inputs with the content of fetched URLs in base64."""
    if not fetched:
        return given
    return _replace_urls(given, lambda _, url: base64.b64encode(fetched[url]).decode())


def _replace_urls(given: TextInputs | ImageInputs, change: Change) -> TextInputs | ImageInputs:
    def replace(field: str, text: str) -> str:
        return change(field, text) if REMOTE_URL.match(text) else text

    scripts = {
        name: _replace_nested(script, replace) if name.lower() == "controlnet" else script
        for name, script in given.alwayson_scripts.items()
    }
    changes: dict[str, Any] = {"alwayson_scripts": scripts}
    if isinstance(given, ImageInputs):
        texts = enumerate(given.init_images)
        changes["init_images"] = [replace(f"init_images.{index}", text) for index, text in texts]
        changes["mask"] = given.mask and replace("mask", given.mask)
    return given.model_copy(update=changes)


def _replace_nested(value: Any, replace: Change, depth: int = 0) -> Any:
    if isinstance(value, str):
        return replace(f"{CONTROLNET_FIELD}.image", value)
    if depth > MAX_NESTING:
        return value
    if isinstance(value, Mapping):
        own = cast(Mapping[Any, Any], value)
        return {name: _replace_nested(inner, replace, depth + 1) for name, inner in own.items()}
    if isinstance(value, list):
        return [_replace_nested(inner, replace, depth + 1) for inner in cast(list[Any], value)]
    return value
