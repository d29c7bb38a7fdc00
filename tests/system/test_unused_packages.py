import os
import subprocess
import sys
from pathlib import Path

import pytest

from overpaint.system.unused_packages import UNUSED_PACKAGES

pytestmark = pytest.mark.smoke

PAINTS = ["overpaint", "create", "house", "--steps", "1", "--size", "64x64", "-o", "house.png"]


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which each of these packages fails when it is imported."""
    for name in UNUSED_PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('a wrong version')")
    return os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}


def test_command_paints_beside_packages_of_wrong_versions(
    tmp_path: Path, broken: dict[str, str]
) -> None:
    command = [sys.executable, "-m", *PAINTS]
    subprocess.run(command, cwd=tmp_path, env=broken, check=True, capture_output=True)
    assert (tmp_path / "house.png").is_file()


def test_library_leaves_the_packages_of_a_program() -> None:
    code = "import overpaint.painter, scipy.stats, peft"
    subprocess.run([sys.executable, "-c", code], check=True)
