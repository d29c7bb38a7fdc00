"""The bounds of pyproject.toml are the versions that are tested."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
DEPENDENCIES = [
    Requirement(text)
    for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
]


def read_pins(name: str) -> dict[str, Version]:
    pins = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / name).read_text(), re.MULTILINE)
    return {canonicalize_name(package): Version(version) for package, version in pins}


LOWEST = read_pins("requirements-lowest.txt")
LOCKED = read_pins("requirements.lock")


def test_lowest_versions_are_the_lower_bounds_of_the_package() -> None:
    for dependency in DEPENDENCIES:
        (bound,) = [each for each in dependency.specifier if each.operator == ">="]
        lowest = LOWEST[canonicalize_name(dependency.name)]
        # Wheels of OpenCV have a build number as a fourth part.
        same = lowest.release[: len(Version(bound.version).release)]
        assert same == Version(bound.version).release, dependency
        assert not any(lowest.release[len(same) : 3]), dependency
        assert lowest in dependency.specifier


def test_locked_versions_are_within_the_bounds_of_the_package() -> None:
    for dependency in DEPENDENCIES:
        assert LOCKED[canonicalize_name(dependency.name)] in dependency.specifier


def test_test_programs_of_the_lowest_versions_are_those_of_the_lock() -> None:
    programs = LOWEST.keys() - {canonicalize_name(each.name) for each in DEPENDENCIES}
    assert programs == {"httpx", "hypothesis", "psycopg", "psycopg-binary", "pytest"}
    assert all(LOWEST[name] == LOCKED[name] for name in programs)
