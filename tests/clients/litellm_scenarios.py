"""Scenarios of litellm: `python -m tests.clients.litellm_scenarios URL PICTURE`.

PYTHONPATH must contain `.venv/clients`. The results of all scenarios are printed as JSON.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from pathlib import Path
from typing import Any

from tests.clients.scenarios import SEED, download, print_results

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it downloads a list of prices otherwise
litellm: Any = importlib.import_module("litellm")

OPENAI: dict[str, Any] = {"model": "openai/gpt-image-1", "prompt": "a cup", "api_key": "KEY"}
FAL: dict[str, Any] = {"prompt": "a cup", "api_key": "KEY"}


def read(made: Any) -> list[str]:
    """Return the pictures of an answer as base64."""
    return [image.b64_json or download(image.url) for image in made.data]


def generate(url: str, picture: Path) -> Any:
    return read(litellm.image_generation(**OPENAI, api_base=f"{url}/v1", n=2, seed=SEED))


def generate_link(url: str, picture: Path) -> Any:
    other = OPENAI | {"model": "openai/dall-e-3", "size": "1024x1024"}
    return read(litellm.image_generation(**other, api_base=f"{url}/v1", seed=SEED))


def generate_async(url: str, picture: Path) -> Any:
    async def run() -> Any:
        other = OPENAI | {"model": "openai/sdxl", "quality": "low"}
        return await litellm.aimage_generation(**other, api_base=f"{url}/v1", seed=SEED)

    return read(asyncio.run(run()))


def edit(url: str, picture: Path) -> Any:
    with picture.open("rb") as image:
        return read(litellm.image_edit(image=image, **OPENAI, api_base=f"{url}/v1", seed=SEED))


def edit_many(url: str, picture: Path) -> Any:
    with picture.open("rb") as first, picture.open("rb") as second:
        both = [first, second]
        made = litellm.image_edit(image=both, **OPENAI, api_base=f"{url}/v1", n=2, size="512x512")
        return read(made)


def generate_with_fal(url: str, picture: Path) -> Any:
    model = "fal_ai/fal-ai/stable-diffusion-v35-large"
    made = litellm.image_generation(
        model=model, **FAL, api_base=f"{url}/fal/run", n=2, size="1024x1024", seed=SEED
    )
    return read(made)


def generate_with_generic_fal(url: str, picture: Path) -> Any:
    base = f"{url}/fal/run/fal-ai/fast-sdxl"
    made = litellm.image_generation(
        model="fal_ai/fal-ai/fast-sdxl", **FAL, api_base=base, size="1024x768", seed=SEED
    )
    return read(made)


def edit_with_fal(url: str, picture: Path) -> Any:
    with picture.open("rb") as image:
        made = litellm.image_edit(
            model="fal_ai/fal-ai/fast-sdxl", image=image, **FAL, api_base=f"{url}/fal/run"
        )
    return read(made)


if __name__ == "__main__":
    print_results(
        generate,
        generate_link,
        generate_async,
        edit,
        edit_many,
        generate_with_fal,
        generate_with_generic_fal,
        edit_with_fal,
    )
