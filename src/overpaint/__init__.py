"""Overpaint repaints pictures with Stable Diffusion XL on your own hardware.

import overpaint
painter = overpaint.load("miniature")
result = painter.edit(picture, "a watercolor painting of a red house", strength=0.6, seed=7)
result.save("out.png")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from overpaint.errors import OverpaintError
    from overpaint.painter import Painter, Result, load
    from overpaint.picture import Picture
    from overpaint.request import Request

    __version__: str

__all__ = ["OverpaintError", "Painter", "Picture", "Request", "Result", "__version__", "load"]

_MODULES = {
    "OverpaintError": "errors",
    "Painter": "painter",
    "Picture": "picture",
    "Request": "request",
    "Result": "painter",
    "load": "painter",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, because the painter imports torch."""
    if name == "__version__":
        from importlib.metadata import version

        return version("overpaint")
    if name in _MODULES:
        return getattr(import_module(f"overpaint.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'overpaint' has no attribute {name!r}")
