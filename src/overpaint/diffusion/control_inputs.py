"""A request's controls on a canvas: pictures become hints, hints what a net sees in them."""

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
from overpaint.request_parts import Control


def prepare_control_inputs(
    request: Request,
    model: Model,
    canvas: Canvas,
    nets: ControlNets,
    estimators: Estimators,
    notices: list[str],
) -> tuple[ControlInput, ...]:
    """The hints that steer a stage.

    Args:
        request: whose controls.
        model: of the stage.
        canvas: likewise.
        nets: of the controls.
        estimators: likewise.
        notices: what the user should be told is appended.

    Raises:
        RequestError: a hint is of another aspect, cannot be made, or is not one that its net knows.
        PictureError: a picture cannot be decoded.
        DeviceError: what an estimator sees is not finite.
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
    kind = HINTS[asked.kind].union
    if net.kind == "union" and (kind is None or kind >= net.types):
        raise RequestError(
            f"{field}.kind",
            f"{net.name} knows {net.types} types of hints, and {asked.kind} is none of them.",
        )
    estimate = estimator and _remembering(estimator, model)
    shown = _hint(asked, estimate, canvas, field, notices)
    mask = None
    if asked.mask:
        gray = _placed(canvas, codec.decode(asked.mask), f"{field}.mask").convert("L")
        cells = masks.cells(np.asarray(gray, np.float32) / np.float32(255), model.vae_factor)
        mask = torch.from_numpy(cells)[None, None].to(model.device)
    hint = torch.from_numpy(codec.to_array(shown))[None] * 0.5 + 0.5
    features = model.remember(
        "hints",
        (net.sha256, shown.size, hashlib.sha256(shown.tobytes()).digest()),
        lambda: net.extract_features(hint),
    )
    interval = (asked.start, asked.end)
    return ControlInput(net, hint, features, asked.scale, interval, asked.weighting, mask, kind)


def _remembering(estimator: Estimator, model: Model) -> hints.Estimate:
    """What an estimator sees, kept by the picture's pixels."""

    def see(picture: Image.Image) -> NDArray[Any]:
        content = hashlib.sha256(picture.tobytes()).digest()
        key = (estimator.sha256, estimator.sight, picture.size, content)
        return model.remember("estimates", key, lambda: estimator.estimate(picture))

    return see


def _hint(
    asked: Control,
    estimate: hints.Estimate | None,
    canvas: Canvas,
    field: str,
    notices: list[str],
) -> Image.Image:
    """The hint of a control, as it lies on the canvas."""
    if finished := asked.hint or (asked.image if asked.kind == "pose" else None):
        hint = hints.decode(asked.kind, finished)
        how: Any = Resampling.NEAREST if HINTS[asked.kind].labels else Resampling.LANCZOS
        if hint.size not in (canvas.size, canvas.frame.source):
            notices.append(
                f"the {asked.kind} hint of {hint.width}x{hint.height} is resampled to fit."
            )
        return _placed(canvas, hint, f"{field}.hint", how)
    hints.check(asked.kind, asked.options, f"{field}.options")
    picture = codec.decode(asked.image) if asked.image else canvas.original
    if picture is None:
        raise RequestError(field, f"there is no picture to make the {asked.kind} hint from.")
    placed = _placed(canvas, picture, f"{field}.image")
    return hints.make(asked.kind, placed, asked.options, estimate)


def _placed(
    canvas: Canvas,
    picture: Image.Image,
    field: str,
    resampling: Resampling = Resampling.LANCZOS,
) -> Image.Image:
    try:
        return canvas.place(picture, resampling)
    except ValueError as error:
        raise RequestError(field, f"{error}; crop or pad it.") from error
