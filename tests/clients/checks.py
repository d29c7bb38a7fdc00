"""Checks that the tests of all clients share."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.clients.scenarios import SEED

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
HOUSE = ROOT / "examples" / "house.png"
COLOR_ERROR = 4
"""Largest error of JPEG and WebP, in levels."""


def check_pictures(
    contents: list[str], number: int = 1, kind: str = "PNG", seed: int | None = SEED
) -> None:
    """Check contents in base64: each is a picture that the server made.

    Args:
        contents: of the files.
        number: of the pictures.
        kind: format of the files.
        seed: of the request, which decides the color; None if the client cannot give a seed.
    """
    assert len(contents) == number
    for content in contents:
        picture = Image.open(io.BytesIO(base64.b64decode(content)))
        assert (picture.format, picture.size) == (kind, (8, 8))
        if seed is not None:
            red, green, blue = picture.convert("RGB").tobytes()[:3]
            assert (red, green, blue) == pytest.approx((seed, 0, 7), abs=COLOR_ERROR)


def last_request(url: str) -> dict[str, Any]:
    """Return the request of the newest job."""
    return httpx.get(f"{url}/api/jobs").json()["jobs"][0]["request"]
