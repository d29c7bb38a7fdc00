"""Python clients that do not fit the lock file, in the versions of `requirements.txt`.

`make clients` installs them into `.venv/clients`. Each `*_scenarios.py` beside this file holds the
scenarios of one client and runs in a process of its own, because the clients take seconds to
import, and bring packages that the other tests must not see.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from typing import Any

import pytest

from tests.clients.checks import FOLDER, HOUSE, ROOT

PACKAGES = ROOT / ".venv" / "clients"
TIMEOUT_S = 300
VERSIONS = dict(
    re.findall(r"^(\S+)==(\S+)$", (FOLDER / "requirements.txt").read_text(), re.MULTILINE)
)

needs_packages = pytest.mark.skipif(
    not PACKAGES.is_dir(), reason="the Python clients are not installed: run `make clients`"
)


def run_scenarios(client: str, url: str) -> dict[str, Any]:
    """Run all scenarios of a client against a server, and return their results by name."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.clients.{client}_scenarios", url, HOUSE],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(PACKAGES)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check_version(package: str) -> None:
    """Check that an installed package has the version of `requirements.txt`."""
    (installed,) = metadata.distributions(name=package, path=[str(PACKAGES)])
    assert installed.version == VERSIONS[package]
