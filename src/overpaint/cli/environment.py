"""Environment variables that every command reads."""

import os
from collections.abc import Sequence
from pathlib import Path


def read_home() -> str | None:
    """Return OVERPAINT_HOME, the folder of added models, or None for the default folder."""
    return os.environ.get("OVERPAINT_HOME")


def read_models_dirs(given: Sequence[Path] | None = None) -> tuple[Path, ...]:
    """Return the folders of models: those of `--models-dir`, else of OVERPAINT_MODELS_DIRS."""
    if given:
        return tuple(given)
    paths = os.environ.get("OVERPAINT_MODELS_DIRS", "").split(os.pathsep)
    return tuple(Path(path) for path in paths if path)


MODELS_DIR_HELP = (
    "Folder of models to use in place: any folder, the root of AUTOMATIC1111's web UI or ComfyUI, "
    "or extra_model_paths.yaml. Can be repeated."
)
