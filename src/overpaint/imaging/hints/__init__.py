"""Hints (control images): pictures that steer the structure of a result, and how each is made.

To add a kind, write one function here and one line in `registry.HINTS`. Some kinds show what an
estimator network sees in a picture; `models.estimators` chooses that network.
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
"""Maps an RGB picture to an array [h, w]: nearness (larger is nearer, in any unit), or the ADE20K
class of each pixel. `models.estimators` provides them."""

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
"""Functions that make a hint from an RGB picture; their keywords are the options."""

HINT_FROM_ESTIMATE: "dict[str, Callable[..., Image]]" = {
    "depth": drawing.draw_depth,
    "normal": drawing.draw_normals,
    "segmentation": drawing.draw_segmentation,
}
"""Functions that draw a hint from an `Estimate`'s result; their keywords are the options."""


def check_hint(kind: str, options: Mapping[str, float], field: str = "options") -> None:
    """Check that a hint can be made with these options.

    Raises:
        RequestError: the kind cannot be made from a picture, or it has no such option.
    """
    if (maker := HINT_FROM_PICTURE.get(kind) or HINT_FROM_ESTIMATE.get(kind)) is None:
        raise RequestError(
            field.replace("options", "kind"),
            f"a {kind} hint cannot be made from a picture; give the finished hint.",
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
    """Make the hint of a picture: RGB, of the picture's size.

    Args:
        kind: a key of `HINT_FROM_PICTURE`, or with `estimate` of `HINT_FROM_ESTIMATE`.
        picture: an RGB picture.
        options: keywords of the function that makes the hint.
        estimate: the estimator. Without one, kind "normal" reads the picture as depth.

    Raises:
        RequestError: the kind or option is unknown, or the kind needs (or takes no) estimator.
    """
    check_hint(kind, options or {})
    if (makers := HINT_FROM_PICTURE if estimate is None else HINT_FROM_ESTIMATE).get(kind) is None:
        word = "only" if estimate is None else "not"
        raise RequestError("estimator", f"a {kind} hint is {word} made with an estimator.")
    source: Any = picture if estimate is None else estimate(picture)
    return makers[kind](source, **(options or {}))


def decode_control_image(kind: str, picture: "Picture") -> "Image":
    """Decode the RGB picture that a hint is made from; draw a pose that is given as keypoints.

    Raises:
        PictureError: the picture cannot be decoded, or the keypoints are malformed.
    """
    if kind == "pose" and picture.data.lstrip()[:1] in (b"{", b"["):
        return drawing.draw_pose(picture.data)
    return codec.decode(picture)
