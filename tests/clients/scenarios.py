"""What the scenarios of Python clients share: they run without pytest, in their own process."""

from __future__ import annotations

import base64
import io
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

SEED = 9
"""The seed of every scenario that can give one."""

Scenario = Callable[[str, Path], Any]
"""Runs a client against the server at an address, with a picture; returns something for JSON."""


def download(url: str) -> str:
    """Return the content of a link or a data: URI as base64."""
    if url.startswith("data:"):
        return url.partition(",")[2]
    return base64.b64encode(httpx.get(url).raise_for_status().content).decode()


def encode(picture: Image.Image) -> str:
    """Return a picture as the base64 of a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def print_results(*scenarios: Scenario) -> None:
    """Run scenarios with the arguments of the command line; print the results by their names.

    The result of a scenario that fails is its traceback, so that the others run too.
    """
    url, picture = sys.argv[1], Path(sys.argv[2])
    results: dict[str, Any] = {}
    for scenario in scenarios:
        try:
            results[scenario.__name__] = scenario(url, picture)
        except Exception:
            results[scenario.__name__] = {"error": traceback.format_exc()}
    print(json.dumps(results))
