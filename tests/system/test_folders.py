"""Folders of the user, and those of earlier versions."""

from pathlib import Path

import pytest

from overpaint.models.library.library import Library
from overpaint.system.folders import find_cache_folder, find_models_home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    return tmp_path


def test_folders_of_a_new_user_follow_the_conventions_of_the_system(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_models_home() == home / ".local" / "share" / "overpaint"
    assert find_cache_folder() == home / ".cache" / "overpaint"
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    assert find_models_home() == home / "data" / "overpaint"
    assert find_cache_folder() == home / "cache" / "overpaint"


def test_folders_of_earlier_versions_stay_in_use(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    (home / ".overpaint").mkdir()
    (home / ".cache" / "overpaint").mkdir(parents=True)
    assert find_models_home() == home / ".overpaint"
    assert find_cache_folder() == home / ".cache" / "overpaint"


def test_library_without_a_home_uses_the_folder_of_the_user(home: Path) -> None:
    assert Library().folder == home / ".local" / "share" / "overpaint" / "models"
