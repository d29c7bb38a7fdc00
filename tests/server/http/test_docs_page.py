"""The page of the routes in a real browser, which obeys its content security policy."""

import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.server.live import PATIENCE, running

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or ""


@pytest.mark.skipif(not BROWSER, reason="no browser here: apt-get install chromium")
def test_docs_page_shows_every_route_and_authorize(tmp_path: Path) -> None:
    command = [
        BROWSER,
        "--headless=new",
        "--no-sandbox",  # a container's root may not have one
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=20000",  # milliseconds of scripts; it stands still for the network
        "--dump-dom",
    ]
    with running(tmp_path / "data") as url:
        paths: set[str] = set(httpx.get(f"{url}/openapi.json", timeout=PATIENCE).json()["paths"])
        opened = subprocess.run(
            [*command, f"{url}/docs"], capture_output=True, text=True, check=True, timeout=PATIENCE
        )
    assert set(re.findall(r'data-path="([^"]+)"', opened.stdout)) == paths
    assert ">Authorize<" in opened.stdout
