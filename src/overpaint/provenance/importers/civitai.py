"""Read the JSON that Civitai writes in the settings line: the models of its generator.

A resource names a page of the site, not a file, so it cannot be looked up among files.
"""

import json
from collections.abc import Iterator
from typing import Any


def list_civitai_resources(text: str) -> list[str]:
    """Describe the LoRAs, embeddings and other files besides the checkpoint."""
    return [
        " ".join(str(part) for part in (_read_type(resource), _read_name(resource), scale) if part)
        for resource in _read_resources(text)
        if _read_type(resource) != "checkpoint"
        for scale in [f"at {resource['weight']}" if resource.get("weight") else ""]
    ]


def read_civitai_model(text: str) -> str | None:
    """Return the name of the checkpoint, or None."""
    for resource in _read_resources(text):
        if _read_type(resource) == "checkpoint":
            return _read_name(resource)
    return None


def _read_resources(text: str) -> Iterator[dict[str, Any]]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return
    if isinstance(data, list):
        yield from (item for item in data if isinstance(item, dict))


def _read_type(resource: dict[str, Any]) -> str:
    return str(resource.get("type", "resource")).lower()


def _read_name(resource: dict[str, Any]) -> str:
    """Return the name, the resource identifier (AIR), or the number of the version."""
    names = (resource.get(key) for key in ("modelName", "air", "modelVersionId"))
    return str(next((name for name in names if name), "without a name"))
