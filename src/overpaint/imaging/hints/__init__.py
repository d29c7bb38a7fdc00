"""Hints (control images): pictures that steer the structure of a result, and how each is made.

To add a kind, write one function here and one line in `registry.HINTS`. Some kinds show what an
estimator network sees in a picture; `models.estimators` chooses that network.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from overpaint.errors import RequestError, did_you_mean
from overpaint.imaging import codec
from overpaint.imaging.hints import color, drawing, edges
from overpaint.imaging.hints.pose import read_pose

if TYPE_CHECKING:
    from PIL.Image import Image

    from overpaint.picture import Picture

MIN_LIT_LEVEL = 16
"""Level (of 255) from which a pixel of a hint counts as not black."""
MIN_LIT_SHARE = 1e-3
"""Share of pixels that are not black below which a hint is reported."""

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
            f"A {kind} hint cannot be made from a picture; give the finished hint.",
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
        raise RequestError("estimator", f"A {kind} hint is {word} made with an estimator.")
    source: Any = picture if estimate is None else estimate(picture)
    return makers[kind](source, **(options or {}))


def is_keypoints(kind: str, picture: "Picture") -> bool:
    """Return whether a control image is a file of keypoints, which is drawn."""
    return kind == "pose" and picture.data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[")


def decode_control_image(
    kind: str,
    picture: "Picture",
    fallback: tuple[int, int] | None = None,
    notices: list[str] | None = None,
) -> "Image":
    """Decode the RGB picture that a hint is made from; draw a pose that is given as keypoints.

    Args:
        kind: of the hint.
        picture: an encoded picture, or JSON keypoints.
        fallback: (width, height) of the picture to which keypoints without a canvas belong.
        notices: the function appends messages about the file.

    Raises:
        PictureError: the picture cannot be decoded, or the keypoints are malformed.
    """
    if is_keypoints(kind, picture):
        return drawing.draw_pose(picture.data, fallback=fallback)
    return codec.decode(picture, notices)


def measure_control_image(kind: str, picture: "Picture") -> tuple[int, int] | None:
    """Return the (width, height) of a control image; None for keypoints without a canvas.

    Raises:
        PictureError: the picture's header cannot be read, or the keypoints are malformed.
    """
    if is_keypoints(kind, picture):
        return read_pose(picture.data).canvas
    return codec.upright_size(picture)


def describe_dark_hint(kind: str, hint: "Image") -> str | None:
    """Return a notice if a hint is nearly black, so that it steers nothing, else None."""
    lit = float((np.asarray(hint).max(axis=2) >= MIN_LIT_LEVEL).mean())
    if lit >= MIN_LIT_SHARE:
        return None
    return (
        f"the {kind} control image is nearly black ({lit:.2%} of its pixels are not): it steers "
        "almost nothing."
    )
