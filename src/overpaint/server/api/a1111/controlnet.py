"""What AUTOMATIC1111 calls scripts that are always on. There is one here: ControlNet.

Hints are made by our own functions of the same kind, at the picture's size.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from overpaint.errors import MAX_NAME_CHARS, RequestError, did_you_mean, quote_value
from overpaint.imaging import codec
from overpaint.picture import Picture
from overpaint.registry import HINTS, Weighting
from overpaint.request_fields import MAX_CONTROLS
from overpaint.request_parts import Control
from overpaint.server.api.a1111.protocol import (
    CONTROL_NET,
    Idle,
    ImageInputs,
    Only,
    TextInputs,
    Words,
)
from overpaint.server.api.a1111.translation import mask_of, picture_data

MODULES = {
    "canny": "canny",
    "lineart": "lineart",
    "lineart_realistic": "lineart",
    "lineart_standard": "lineart",
    "lineart_standard (from white bg & black line)": "lineart",
    "scribble_hed": "scribble",
    "scribble_pidinet": "scribble",
    "softedge_hed": "softedge",
    "softedge_pidinet": "softedge",
    "depth": "depth",
    "depth_midas": "depth",
    "depth_zoe": "depth",
    "depth_anything": "depth",
    "depth_anything_v2": "depth",
    "normal_midas": "normal",
    "normal_bae": "normal",
    "segmentation": "segmentation",
    "seg_ofade20k": "segmentation",
    "seg_ufade20k": "segmentation",
    "shuffle": "shuffle",
}
"""The kind of hint that a preprocessor makes; those with settings that we lack are left out."""

FINISHED = ("none", "None", "")
"""A preprocessor's name where the picture is a finished hint."""

WORDS = {"openpose": "pose", "hed": "softedge", "pidi": "softedge", "seg": "segmentation"}
"""What names of nets say, beside the names of hints."""

MODES: dict[str | int, Weighting] = {
    "Balanced": "balanced",
    "My prompt is more important": "soft",
    "ControlNet is more important": "guess",
    0: "balanced",
    1: "soft",
    2: "guess",
}
"""Their `control_mode`."""


THEIRS = {"start": "guidance_start", "end": "guidance_end", "options": "threshold_a"}
"""What a field of ours is called there, where something is wrong with it."""


class Unit(Words):
    """A unit of ControlNet's."""

    enabled: bool = Field(default=True, description="Whether it acts.")
    image: str | dict[str, Any] | None = Field(
        default=None, description="What steers; by default the picture to repaint."
    )
    module: str = Field(
        default="none", description="`kind`: a preprocessor; none for a `hint` that is finished."
    )
    model: str = Field(default="None", description="`net`; by default the one for the hint's kind.")
    weight: float = Field(default=1.0, ge=0, le=2, description="`scale`.")
    guidance_start: float = Field(
        default=0.0, ge=0, le=1, description="`start`: where it begins to act."
    )
    guidance_end: float = Field(default=1.0, ge=0, le=1, description="`end`: where it ends.")
    control_mode: Literal[
        "Balanced", "My prompt is more important", "ControlNet is more important", 0, 1, 2
    ] = Field(default="Balanced", description="`weighting`: balanced, soft, guess.")
    threshold_a: float = Field(default=-1, description="`options`: canny's low.")
    threshold_b: float = Field(default=-1, description="`options`: canny's high.")
    effective_region_mask: str | None = Field(
        default=None, description="`mask`: where it acts, white, or what is not transparent."
    )

    mask: Annotated[Any, Only(None)] = None
    hr_option: Annotated[Any, Only("Both")] = "Both"
    resize_mode: Idle = None  # hints must have the result's aspect, or the picture's size
    processor_res: Idle = None
    pixel_perfect: Idle = None
    low_vram: Idle = None
    lowvram: Idle = None
    save_detected_map: Idle = None


def controls_of(given: TextInputs | ImageInputs) -> tuple[Control, ...]:
    """What the always-on scripts ask for.

    Raises:
        RequestError: one that is not off is not ControlNet, or wrong.
        PictureError: a picture cannot be read.
    """
    found: list[Control] = []
    for name, script in given.alwayson_scripts.items():
        args = script.get("args", []) if isinstance(script, Mapping) else script
        args = [arg for arg in (args if isinstance(args, list) else [args]) if not _off(arg)]
        if args and name.lower() != "controlnet":
            raise RequestError(
                f"alwayson_scripts.{name}", "there is no such script here; leave it out."
            )
        if len(found) + len(args) > MAX_CONTROLS:  # before any picture is looked at
            raise RequestError(
                CONTROL_NET, f"there are {MAX_CONTROLS} units at most; this has more."
            )
        found += [_control(arg, given) for arg in args]
    return tuple(found)


def _off(arg: Any) -> bool:
    """Whether an argument asks for nothing."""
    return not arg or (isinstance(arg, Mapping) and arg.get("enabled", True) is False)


def _control(arg: Any, given: TextInputs | ImageInputs) -> Control:
    try:
        unit = Unit.model_validate(arg)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        field = ".".join([CONTROL_NET, *map(str, wrong["loc"][:1])])
        raise RequestError(field, f"{wrong['msg']}.") from None
    kind = _kind(unit)
    fields: dict[str, Any] = {
        "kind": kind,
        "scale": unit.weight,
        "start": unit.guidance_start,
        "end": unit.guidance_end,
        "weighting": MODES[unit.control_mode],
    }
    if unit.model not in ("None", ""):
        fields["net"] = unit.model.partition(" [")[0].removesuffix(".safetensors")
    if (picture := _picture(unit, given)) is not None:
        fields["hint" if unit.module in FINISHED else "image"] = picture
    if unit.module == "canny":
        thresholds = {"low": unit.threshold_a, "high": unit.threshold_b}
        fields["options"] = {name: value for name, value in thresholds.items() if value >= 0}
    if unit.effective_region_mask:
        field = f"{CONTROL_NET}.effective_region_mask"
        data = picture_data(field, unit.effective_region_mask)
        fields["mask"] = mask_of(codec.receive_picture(data, field).data, rounded=False)
    try:
        return Control(**fields)
    except RequestError as error:
        field = f"{CONTROL_NET}.{THEIRS.get(error.field, error.field)}"
        raise RequestError(field, error.message) from None


def _kind(unit: Unit) -> str:
    """The kind of a unit's hint: its preprocessor's, or for a finished one its net's."""
    field = f"{CONTROL_NET}.module"
    if unit.module not in FINISHED:
        if unit.module not in MODULES:
            raise RequestError(
                field, f"unknown {quote_value(unit.module)}.{did_you_mean(unit.module, MODULES)}"
            )
        return MODULES[unit.module]
    words = {**dict(zip(HINTS, HINTS, strict=True)), **WORDS}
    name = unit.model.lower()
    kinds = {kind for word, kind in words.items() if word in name}
    if len(kinds) != 1:
        raise RequestError(
            field,
            f"the name of the net, {quote_value(unit.model)}, does not say which kind of "
            "hint it takes.",
        )
    return kinds.pop()


def _picture(unit: Unit, given: TextInputs | ImageInputs) -> Picture | None:
    """What steers; None for the request's own picture, of which a hint is to be made."""
    image = unit.image
    if isinstance(image, dict):
        for name in image.keys() - {"image"}:
            if image[name]:
                raise RequestError(
                    f"{CONTROL_NET}.image.{name[:MAX_NAME_CHARS]}", "is not known; leave it out."
                )
        image = image.get("image")
    if not image:
        if not isinstance(given, ImageInputs):
            raise RequestError(f"{CONTROL_NET}.image", "there is none; give it.")
        if unit.module not in FINISHED:
            return None
        image = given.init_images[0]
    if not isinstance(image, str):
        raise RequestError(f"{CONTROL_NET}.image", "is neither base64 nor a data: URI.")
    field = f"{CONTROL_NET}.image"
    return codec.receive_picture(picture_data(field, image), field)
