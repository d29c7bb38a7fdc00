"""Overpaint repaints pictures with Stable Diffusion XL on hardware you own.

import overpaint
painter = overpaint.load("miniature")
result = painter.edit(picture, "a watercolor painting of a red house", strength=0.6, seed=7)
result.save("out.png")
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from overpaint.errors import OverpaintError
from overpaint.picture import Picture
from overpaint.request import Request

if TYPE_CHECKING:
    from overpaint.painter import Painter, Result, load

__all__ = ["OverpaintError", "Painter", "Picture", "Request", "Result", "__version__", "load"]
__version__ = version("overpaint")


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for."""
    if name in {"Painter", "Result", "load"}:
        from overpaint import painter

        return getattr(painter, name)
    raise AttributeError(f"module 'overpaint' has no attribute {name!r}")
