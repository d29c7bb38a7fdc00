"""Make a hint from an estimate in a process: `python -m overpaint.models.estimated_hint KIND`.

Reads a picture from stdin and writes the hint as a PNG to stdout. The server uses this command, so
that its own process needs neither PyTorch nor OpenCV. The estimator runs on the CPU, because the
accelerator's memory is the worker's.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from overpaint.errors import ModelNotFoundError
from overpaint.imaging import codec
from overpaint.imaging.hint_command import run_hint_command
from overpaint.models.library.catalog import DEFAULT_ESTIMATORS, ESTIMATORS, resolve_model
from overpaint.picture import Picture
from overpaint.registry import HINTS

if TYPE_CHECKING:
    from PIL.Image import Image

ESTIMATOR_BY_SIGHT = {HINTS[kind].sight: name for kind, name in DEFAULT_ESTIMATORS.items()}


def find_estimator(kind: str) -> Path:
    """Return the folder of the default estimator for a kind, which must be installed.

    Raises:
        ModelNotFoundError: it is not installed.
    """
    name = ESTIMATOR_BY_SIGHT[HINTS[kind].sight]
    try:
        return resolve_model(name, download=False, known=lambda: ESTIMATORS)
    except ModelNotFoundError:
        raise ModelNotFoundError(
            f"A {kind} image needs the estimator {name}, which is not installed. "
            f"Run `overpaint models pull {name}` on the server."
        ) from None


def make_estimated_hint(kind: str, picture: Picture, estimator: Path) -> "Image":
    """Make the hint of a picture from what an estimator sees in it.

    Args:
        kind: of the hint: depth, normal or segmentation.
        picture: an encoded picture.
        estimator: the folder of the estimator.

    Raises:
        CheckpointError: the estimator cannot be loaded.
        PictureError: the picture cannot be decoded.
    """
    import torch

    from overpaint.imaging import hints
    from overpaint.models.estimators import load_estimator

    sight = "classes" if HINTS[kind].sight == "classes" else "depth"
    loaded = load_estimator(estimator, sight, torch.device("cpu"), torch.float32)
    return hints.make_hint(kind, codec.decode(picture), {}, loaded.estimate)


def main() -> int:
    """Run the command; return its exit code."""
    kind = sys.argv[1]
    return run_hint_command(
        lambda picture: make_estimated_hint(kind, picture, find_estimator(kind))
    )


if __name__ == "__main__":
    sys.exit(main())
