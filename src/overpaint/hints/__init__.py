"""Hints: pictures that steer the structure of others, and how each is made.

One function here and one line in `names.HINTS` make a new kind.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from overpaint import images
from overpaint.errors import RequestError, near
from overpaint.hints import colour, drawing, edges

if TYPE_CHECKING:
    from PIL.Image import Image

    from overpaint.request import Picture

MAKERS: "dict[str, Callable[..., Image]]" = {
    "canny": edges.canny,
    "lineart": edges.lineart,
    "scribble": edges.scribble,
    "softedge": edges.softedge,
    "tile": colour.tile,
    "blur": colour.blur,
    "shuffle": colour.shuffle,
    "palette": colour.palette,
    "normal": drawing.normal,
}
"""What makes a hint of an RGB picture, by keywords that are its options."""


def check(kind: str, options: Mapping[str, float], field: str = "options") -> None:
    """Find what is wrong with a hint that is to be made.

    Raises:
        RequestError: it cannot be made from a picture, or has no such option.
    """
    if (maker := MAKERS.get(kind)) is None:
        raise RequestError(
            field.replace("options", "kind"),
            f"a {kind} hint cannot be made from a picture here; give a finished one.",
        )
    parameters = inspect.signature(maker).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    if unknown := [name for name in options if name not in known]:
        says = near(unknown[0], known) if known else " It has none."
        raise RequestError(field, f"{kind} has no option {unknown[0]!r}.{says}")


def make(kind: str, picture: "Image", options: Mapping[str, Any] | None = None) -> "Image":
    """The hint of a picture, RGB and of its size.

    Args:
        kind: one of `MAKERS`.
        picture: RGB.
        options: of its function.

    Raises:
        RequestError: no such kind or option.
    """
    check(kind, options or {})
    return MAKERS[kind](picture, **(options or {}))


def decode(kind: str, picture: "Picture") -> "Image":
    """The picture that a hint is made from, RGB; a pose is drawn from its keypoints already.

    Raises:
        PictureError: it cannot be read.
    """
    if kind == "pose" and picture.data.lstrip()[:1] in (b"{", b"["):
        return drawing.pose(picture.data)
    return images.decode(picture)
