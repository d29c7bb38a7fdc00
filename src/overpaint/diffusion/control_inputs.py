"""Prepare a request's control images: place them on the canvas, preprocess and encode them."""

import hashlib
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling

from overpaint.diffusion.conditioning import ControlInput
from overpaint.errors import RequestError
from overpaint.imaging import codec, hints, masks
from overpaint.imaging.canvas import Canvas
from overpaint.models.addons import ControlNets, Estimators
from overpaint.models.controlnet import ControlNet
from overpaint.models.estimators import Estimator
from overpaint.models.model import Model
from overpaint.registry import HINTS
from overpaint.request import Request
from overpaint.request.parts import Control
from overpaint.system.abandon import check_abandoned


def prepare_control_inputs(
    request: Request,
    model: Model,
    canvas: Canvas,
    nets: ControlNets,
    estimators: Estimators,
    notices: list[str],
) -> tuple[ControlInput, ...]:
    """Return the control inputs of a stage.

    Args:
        request: has the controls.
        model: of the stage.
        canvas: of the stage.
        nets: one per control.
        estimators: one per control.
        notices: the function appends messages for the user.

    Raises:
        RequestError: a control image has another aspect ratio, the preprocessor cannot make it, or
            its net does not support its type.
        PictureError: a picture cannot be decoded.
        DeviceError: an estimator's result is not finite.
    """
    asked = zip(request.controls, nets, strict=False)
    return tuple(
        _prepare(control, net, estimator, f"controls.{index}", model, canvas, notices)
        for index, ((control, net), estimator) in enumerate(zip_longest(asked, estimators))
        if net is not None
    )


def _prepare(
    asked: Control,
    net: ControlNet,
    estimator: Estimator | None,
    field: str,
    model: Model,
    canvas: Canvas,
    notices: list[str],
) -> ControlInput:
    check_abandoned()
    kind = HINTS[asked.kind].union
    if net.kind == "union" and (kind is None or kind >= net.types):
        raise RequestError(
            f"{field}.kind",
            f"{net.name} supports {net.types} types of control images, but not {asked.kind}.",
        )
    estimate = estimator and _cache_estimates(estimator, model)
    image = _make_hint(asked, estimate, canvas, field, notices)
    if dark := hints.describe_dark_hint(asked.kind, image):
        notices.append(dark)
    mask = None
    if asked.mask:
        size = codec.upright_size(asked.mask)
        use = masks.MaskUse(f"the mask of {field}", "the ControlNet acts on", remedy="")
        gray = Image.fromarray(masks.decode_mask(asked.mask, size, notices, use))
        placed = _place(canvas, gray, f"{field}.mask")
        # Lanczos resampling can overshoot the range.
        pixels = np.clip(np.asarray(placed, np.float32), 0, 1)
        cells = masks.to_latent_cells(pixels, model.vae_factor)
        mask = torch.from_numpy(cells)[None, None].to(model.device)
    hint = torch.from_numpy(codec.to_array(image))[None] * 0.5 + 0.5
    features = model.remember(
        "hints",
        (net.sha256, image.size, hashlib.sha256(image.tobytes()).digest()),
        lambda: net.extract_features(hint),
    )
    interval = (asked.start, asked.end)
    return ControlInput(net, hint, features, asked.scale, interval, asked.weighting, mask, kind)


def _cache_estimates(estimator: Estimator, model: Model) -> hints.Estimate:
    """Return the estimator's function, with results cached by the picture's pixels."""

    def estimate(picture: Image.Image) -> NDArray[Any]:
        content = hashlib.sha256(picture.tobytes()).digest()
        key = (estimator.sha256, estimator.sight, picture.size, content)
        return model.remember("estimates", key, lambda: estimator.estimate(picture))

    return estimate


def _make_hint(
    asked: Control,
    estimate: hints.Estimate | None,
    canvas: Canvas,
    field: str,
    notices: list[str],
) -> Image.Image:
    """Return the control image of a control, placed on the canvas."""
    if finished := asked.hint or (asked.image if asked.kind == "pose" else None):
        fallback = canvas.placement.source or canvas.placement.fitted
        hint = hints.decode_control_image(asked.kind, finished, fallback, notices)
        how: Any = Resampling.NEAREST if HINTS[asked.kind].labels else Resampling.LANCZOS
        if hint.size not in (canvas.size, canvas.placement.source):
            notices.append(
                f"the {asked.kind} control image of {hint.width}x{hint.height} is resampled to fit."
            )
        return _place(canvas, hint, f"{field}.hint", how)
    hints.check_hint(asked.kind, asked.options, f"{field}.options")
    picture = codec.decode(asked.image, notices) if asked.image else canvas.source_picture
    if picture is None:
        raise RequestError(
            field, f"There is no picture to make the {asked.kind} control image from."
        )
    placed = _place(canvas, picture, f"{field}.image")
    return hints.make_hint(asked.kind, placed, asked.options, estimate)


def _place(
    canvas: Canvas,
    picture: Image.Image,
    field: str,
    resampling: Resampling = Resampling.LANCZOS,
) -> Image.Image:
    try:
        return canvas.place(picture, resampling)
    except ValueError as error:
        raise RequestError(field, f"{error}; crop or pad it.") from error
