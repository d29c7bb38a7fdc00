"""The documented versions of clients are those that the tests run."""

from __future__ import annotations

import json
import re

from tests.clients.checks import FOLDER, ROOT
from tests.clients.javascript import VERSIONS

CLIENTS = ROOT / "docs" / "guides" / "clients" / "index.md"
ROW = re.compile(r"^\| `(\S+)` \| (\S+)(?: and (\S+))? \| (Python|JavaScript) \|$", re.M)


def test_documented_versions_are_installed() -> None:
    installed = {
        "Python": "".join(
            path.read_text()
            for path in (ROOT / "requirements.lock", ROOT / "Makefile", FOLDER / "requirements.txt")
        ),
        "JavaScript": "\n".join(f"{name}=={version}\n" for name, version in VERSIONS.items()),
    }
    rows = ROW.findall(CLIENTS.read_text())
    assert {name for name, _, _, language in rows if language == "JavaScript"} == set(VERSIONS)
    for name, *versions, language in rows:
        for version in filter(None, versions):
            assert re.search(rf"(?<![\w-]){name}=={re.escape(version)}\s", installed[language])


def test_lock_has_versions_of_package_and_names_no_registry() -> None:
    lock = json.loads((FOLDER / "package-lock.json").read_text())["packages"]
    assert lock[""]["dependencies"] == VERSIONS
    assert all("resolved" not in package for package in lock.values())
    assert all("integrity" in package for name, package in lock.items() if name)
