"""Scenarios of langchain-community: `python -m tests.clients.langchain_scenarios URL PICTURE`.

PYTHONPATH must contain `.venv/clients`. The results of all scenarios are printed as JSON.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from tests.clients.scenarios import SEED, download, print_results

os.environ["REPLICATE_API_TOKEN"] = "KEY"
os.environ["REPLICATE_BASE_URL"] = sys.argv[1]
os.environ["REPLICATE_POLL_INTERVAL"] = "0.05"

PINNED = "stability-ai/sdxl:39ed52f2a78e934b3ba6e2a89f5b1c712de7dfea535525255b1aa35c5565e08b"

dalle: Any = importlib.import_module("langchain_community.utilities.dalle_image_generator")
tools: Any = importlib.import_module("langchain_community.tools.openai_dalle_image_generation")
llms: Any = importlib.import_module("langchain_community.llms")


def generate(url: str, picture: Path) -> Any:
    wrapper = dalle.DallEAPIWrapper(api_key="KEY", base_url=f"{url}/v1", n=2)
    return [download(link) for link in wrapper.run("a cup").splitlines()]


def generate_in_quality(url: str, picture: Path) -> Any:
    wrapper = dalle.DallEAPIWrapper(
        api_key="KEY", base_url=f"{url}/v1", model="dall-e-3", quality="hd", size="1792x1024"
    )
    return [download(wrapper.run("a cup"))]


def call_tool(url: str, picture: Path) -> Any:
    wrapper = dalle.DallEAPIWrapper(api_key="KEY", base_url=f"{url}/v1")
    return [download(tools.OpenAIDALLEImageGenerationTool(api_wrapper=wrapper).invoke("a cup"))]


def call_replicate(url: str, picture: Path) -> Any:
    model = llms.Replicate(model="overpaint/miniature", model_kwargs={"seed": SEED})
    return [download(model.invoke("a cup"))]


def call_pinned_replicate(url: str, picture: Path) -> Any:
    inputs = {"seed": SEED, "image_dimensions": "512x512"}
    model = llms.Replicate(model=PINNED, model_kwargs=inputs)
    return [download(model.invoke("a cup"))]


def stream_replicate(url: str, picture: Path) -> Any:
    model = llms.Replicate(
        model="overpaint/miniature", model_kwargs={"seed": SEED, "num_outputs": 2}
    )
    return [download(part) for part in model.stream("a cup")]


if __name__ == "__main__":
    print_results(
        generate,
        generate_in_quality,
        call_tool,
        call_replicate,
        call_pinned_replicate,
        stream_replicate,
    )
