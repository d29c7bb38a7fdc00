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
    from overpaint.events import Event, Finished, Notice, Preview, Step
    from overpaint.painter import Painter, load
    from overpaint.picture import Picture
    from overpaint.request import Request
    from overpaint.request.parts import Control, Lora
    from overpaint.result import Result

    __version__: str

__all__ = [
    "Control",
    "Event",
    "Finished",
    "Lora",
    "Notice",
    "OverpaintError",
    "Painter",
    "Picture",
    "Preview",
    "Request",
    "Result",
    "Step",
    "__version__",
    "load",
]

_MODULES = {
    "Control": "request.parts",
    "Event": "events",
    "Finished": "events",
    "Lora": "request.parts",
    "Notice": "events",
    "OverpaintError": "errors",
    "Painter": "painter",
    "Picture": "picture",
    "Preview": "events",
    "Request": "request",
    "Result": "result",
    "Step": "events",
    "load": "painter",
}


def __dir__() -> list[str]:
    """Return the public names, for completion in notebooks."""
    return [*globals(), *__all__]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, because the painter imports torch."""
    if name == "__version__":
        from importlib.metadata import version

        return version("overpaint")
    if name in _MODULES:
        return getattr(import_module(f"overpaint.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'overpaint' has no attribute {name!r}")
