"""Folders of the user in which Overpaint keeps files, by the conventions of each system.

Folders of earlier versions stay in use where they exist.
"""

from pathlib import Path

APPLICATION = "overpaint"


def find_models_home() -> Path:
    """Return the folder of added models.

    It is `~/.overpaint` if that exists, else the user's data folder: on Linux
    `$XDG_DATA_HOME/overpaint`, by default `~/.local/share/overpaint`.

    Raises:
        RuntimeError: the user has no home folder.
    """
    from platformdirs import user_data_path

    return _prefer(Path.home() / ".overpaint", user_data_path(APPLICATION, appauthor=False))


def find_cache_folder() -> Path:
    """Return the folder of values that Overpaint can compute again.

    It is `~/.cache/overpaint` if that exists, else the user's cache folder: on Linux
    `$XDG_CACHE_HOME/overpaint`, by default `~/.cache/overpaint`.

    Raises:
        RuntimeError: the user has no home folder.
    """
    from platformdirs import user_cache_path

    folder = user_cache_path(APPLICATION, appauthor=False)
    return _prefer(Path.home() / ".cache" / APPLICATION, folder)


def _prefer(earlier: Path, current: Path) -> Path:
    return earlier if earlier.is_dir() else current
