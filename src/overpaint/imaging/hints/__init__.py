"""Hints: pictures that steer the structure of others, and how each is made.

One function here and one line in `names.HINTS` make a new kind. Some show what a network has seen
in a picture; which one that is, is not known here.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from overpaint.errors import RequestError, did_you_mean
from overpaint.imaging import codec
from overpaint.imaging.hints import color, drawing, edges

if TYPE_CHECKING:
    from PIL.Image import Image

    from overpaint.picture import Picture

Estimate = Callable[["Image"], NDArray[Any]]
"""What a network sees in an RGB picture, [h, w]: how near each pixel is (larger is nearer, in any
unit), or its class of ADE20K's. See `models.estimators`."""

HINT_FROM_PICTURE: "dict[str, Callable[..., Image]]" = {
    "canny": edges.canny,
    "lineart": edges.lineart,
    "scribble": edges.scribble,
    "softedge": edges.softedge,
    "tile": color.tile,
    "blur": color.blur,
    "shuffle": color.shuffle,
    "palette": color.palette,
    "normal": drawing.draw_normals_from_depth,
}
"""What makes a hint of an RGB picture, by keywords that are its options."""

HINT_FROM_ESTIMATE: "dict[str, Callable[..., Image]]" = {
    "depth": drawing.draw_depth,
    "normal": drawing.draw_normals,
    "segmentation": drawing.draw_segmentation,
}
"""What draws a hint of an `Estimate`'s result, likewise."""


def check_hint(kind: str, options: Mapping[str, float], field: str = "options") -> None:
    """Find what is wrong with a hint that is to be made.

    Raises:
        RequestError: it cannot be made from a picture, or has no such option.
    """
    if (maker := HINT_FROM_PICTURE.get(kind) or HINT_FROM_ESTIMATE.get(kind)) is None:
        raise RequestError(
            field.replace("options", "kind"),
            f"a {kind} hint cannot be made from a picture here; give a finished one.",
        )
    parameters = inspect.signature(maker).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    if unknown := [name for name in options if name not in known]:
        says = did_you_mean(unknown[0], known) if known else " It has none."
        raise RequestError(field, f"{kind} has no option {unknown[0]!r}.{says}")


def make_hint(
    kind: str,
    picture: "Image",
    options: Mapping[str, Any] | None = None,
    estimate: Estimate | None = None,
) -> "Image":
    """The hint of a picture, RGB and of its size.

    Args:
        kind: one of `MAKERS`, or with `estimate` of `DRAWN`.
        picture: RGB.
        options: of its function.
        estimate: sees what the hint shows; without it a picture of depth becomes normals.

    Raises:
        RequestError: no such kind or option, or it cannot be made without an estimator, or with.
    """
    check_hint(kind, options or {})
    if (makers := HINT_FROM_PICTURE if estimate is None else HINT_FROM_ESTIMATE).get(kind) is None:
        word = "only" if estimate is None else "not"
        raise RequestError("estimator", f"a {kind} hint is {word} made with an estimator.")
    source: Any = picture if estimate is None else estimate(picture)
    return makers[kind](source, **(options or {}))


def decode_control_image(kind: str, picture: "Picture") -> "Image":
    """The picture that a hint is made from, RGB; a pose is drawn from its keypoints already.

    Raises:
        PictureError: it cannot be read.
    """
    if kind == "pose" and picture.data.lstrip()[:1] in (b"{", b"["):
        return drawing.draw_pose(picture.data)
    return codec.decode(picture)
