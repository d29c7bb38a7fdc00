"""The documentation builds as a site without a warning: no broken link, no page left out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site in a process of its own, as `make docs` does."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "--keep-going", "-q"]
    built = subprocess.run(
        [*command, "-b", "html", "-d", str(out / "trees"), str(ROOT / "docs"), str(out / "html")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return out / "html"


@pytest.mark.smoke
def test_site_builds_strictly_with_its_reference_pages(site: Path) -> None:
    pages = {str(path.relative_to(site)) for path in site.rglob("*.html")}
    for name in ("cli", "request", "http", "dialects", "limits", "metrics", "logs"):
        assert f"reference/{name}.html" in pages
    assert "index.html" in pages
