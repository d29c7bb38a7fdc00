"""The always-on script that the server supports: ControlNet, as `controls` of a `Request`.

Overpaint's preprocessor of the same kind makes each control image, at the size of the image.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, cast

from PIL import Image, ImageChops
from pydantic import Field, ValidationError

from overpaint.errors import MAX_NAME_CHARS, RequestError, did_you_mean, quote_value
from overpaint.imaging import codec
from overpaint.picture import Picture
from overpaint.registry import HINTS, Weighting
from overpaint.request.fields import MAX_CONTROLS
from overpaint.request.parts import Control
from overpaint.server.api.a1111.image_fields import decode_image, read_gray
from overpaint.server.api.a1111.model_titles import strip_model_title
from overpaint.server.api.a1111.option_fields import A1111Model
from overpaint.server.api.a1111.protocol import CONTROLNET_FIELD, ImageInputs, TextInputs, is_false
from overpaint.server.api.fields import encode_mask
from overpaint.server.api.ignored_fields import (
    Ignored,
    UnsupportedExcept,
    is_empty,
    report_ignored,
    report_ignored_fields,
)

KIND_BY_PREPROCESSOR = {
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
"""Kind of control image that each preprocessor makes. Preprocessors with settings that Overpaint
lacks are absent."""

KIND_BY_OLD_PREPROCESSOR = {
    "hed": "softedge",
    "pidinet": "softedge",
    "pidinet_scribble": "scribble",
    "fake_scribble": "scribble",
    "normal_map": "normal",
}
"""Kinds of preprocessors under names of the extension's first versions, which are not listed."""

SWITCH_BY_SCRIPT = {"reactor": 1}
"""Place of the switch among the arguments of other always-on scripts; 0 for those not here."""

NO_PREPROCESSOR = ("none", "None", "")
"""Names for no preprocessor: the image is a finished control image."""

KIND_BY_MODEL_WORD = {kind: kind for kind in HINTS} | {
    "openpose": "pose",
    "hed": "softedge",
    "pidi": "softedge",
    "seg": "segmentation",
}
"""Kind of control image that a word in the name of a ControlNet stands for."""

WEIGHTING_BY_CONTROL_MODE: dict[str | int, Weighting] = {
    "Balanced": "balanced",
    "My prompt is more important": "soft",
    "ControlNet is more important": "guess",
    0: "balanced",
    1: "soft",
    2: "guess",
}

CLIENT_FIELDS = {"start": "guidance_start", "end": "guidance_end", "options": "threshold_a"}
"""AUTOMATIC1111's name for each native field of a control, for error messages."""


ControlMode = Literal[
    "Balanced", "My prompt is more important", "ControlNet is more important", 0, 1, 2
]


class Unit(A1111Model):
    """A ControlNet unit."""

    enabled: bool = True
    """Turns the unit on."""
    image: Any = None
    """The image that steers the result; by default the image to repaint."""
    input_image: Any = None
    """Older name of image."""
    mask: str | None = None
    """Area in which the ControlNet acts (`mask`): white pixels, or opaque pixels if the mask has
    transparency. A black mask stands for no mask."""
    mask_image: str | None = None
    """Another name of mask."""
    effective_region_mask: str | None = None
    """Area in which the ControlNet acts (`mask`), limited by mask too."""
    module: str = "none"
    """Preprocessor that makes the control image (`kind`); "none" if the image is a finished one
    (`hint`)."""
    model: str = "None"
    """Name of the ControlNet (`net`); by default the one for the kind of control image."""
    weight: float = Field(default=1.0, ge=0, le=2)
    """Strength of the ControlNet (`scale`)."""
    guidance_start: float = Field(default=0.0, ge=0, le=1)
    """Fraction of the denoising range at which the ControlNet begins to act (`start`)."""
    guidance_end: float = Field(default=1.0, ge=0, le=1)
    """Fraction of the denoising range at which the ControlNet stops (`end`)."""
    control_mode: ControlMode = "Balanced"
    """Weight of the ControlNet against the prompt (`weighting`): balanced, soft or guess."""
    guess_mode: bool = False
    """Older name for the control mode "ControlNet is more important" (`weighting`)."""
    guessmode: bool = False
    """Another name of guess_mode."""
    threshold_a: float = -1
    """Low threshold of canny (`options`)."""
    threshold_b: float = -1
    """High threshold of canny (`options`)."""

    hr_option: str = "Both"
    """With a second pass only "Both" is supported."""
    loopback: Annotated[bool, UnsupportedExcept(False)] = False
    advanced_weighting: Annotated[Any, UnsupportedExcept()] = None
    # Control images must have the aspect of the result, or the size of the image.
    resize_mode: Ignored = None
    processor_res: Ignored = None
    pixel_perfect: Ignored = None
    low_vram: Ignored = None
    lowvram: Ignored = None
    save_detected_map: Ignored = None


BOTH_PASSES = ("both", "hiresfixoption.both", "0", "")
"""Values of `hr_option`, in lower case, for a ControlNet that acts in both passes."""


def read_controls(
    given: TextInputs | ImageInputs, resolve_net: Callable[[str], str] = strip_model_title
) -> tuple[Control, ...]:
    """Return the controls that the always-on scripts ask for.

    Args:
        given: the inputs.
        resolve_net: returns the name of the ControlNet with a title.

    Raises:
        RequestError: a unit is invalid, or a script that is not ControlNet is on.
        PictureError: an image cannot be read.
    """
    controls: list[Control] = []
    for name, script in given.alwayson_scripts.items():
        args = script.get("args", []) if isinstance(script, Mapping) else script
        args = args if isinstance(args, list) else [args]
        if name.lower() != "controlnet":
            if not _is_script_off(name, args):
                raise RequestError(
                    f"alwayson_scripts.{name}",
                    "This script is not supported; turn it off, or leave it out.",
                )
            report_ignored(f"alwayson_scripts.{name}")
            continue
        args = [arg for arg in args if not _is_off(arg)]
        if len(controls) + len(args) > MAX_CONTROLS:  # before any image is read
            raise RequestError(
                CONTROLNET_FIELD,
                f"A request can have up to {MAX_CONTROLS} units; this one has more.",
            )
        controls += [_read_control(arg, given, resolve_net) for arg in args]
    return tuple(controls)


def _is_off(arg: Any) -> bool:
    """Return whether an argument turns a script off: it is false, empty, or not enabled."""
    if not isinstance(arg, Mapping):
        return is_false(arg)
    switches = cast(Mapping[str, Any], arg)
    without_model = switches.get("ad_model") in ("None", "none", "")  # of ADetailer
    off = any(is_false(switches.get(name, True)) for name in ("enabled", "enable"))
    return not switches or without_model or off


def _is_script_off(name: str, args: list[Any]) -> bool:
    """Return whether arguments leave an always-on script without effect.

    A script is off if its switch is, or if all of its units are. The switch is the first argument
    but for `SWITCH_BY_SCRIPT`.
    """
    units = [arg for arg in args if isinstance(arg, Mapping)]
    if units and all(map(_is_off, units)):
        return True
    place = SWITCH_BY_SCRIPT.get(name.lower(), 0)
    return len(args) <= place or _is_off(args[place])


def _read_control(
    arg: Any, given: TextInputs | ImageInputs, resolve_net: Callable[[str], str]
) -> Control:
    try:
        unit = Unit.model_validate(arg)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join([CONTROLNET_FIELD, *map(str, first["loc"][:1])])
        raise RequestError(field, f"{first['msg']}.") from None
    report_ignored_fields(unit, f"{CONTROLNET_FIELD}.")
    if isinstance(given, TextInputs) and given.enable_hr:
        _check_passes(unit)
    image, drawn = _split_image(unit.image or unit.input_image)
    fields: dict[str, Any] = {
        "kind": _resolve_kind(unit),
        "scale": unit.weight,
        "start": unit.guidance_start,
        "end": unit.guidance_end,
        "weighting": _resolve_weighting(unit),
    }
    if unit.model not in ("None", ""):
        fields["net"] = resolve_net(unit.model)
    if (picture := _read_image(unit, image, given)) is not None:
        fields["hint" if unit.module in NO_PREPROCESSOR else "image"] = picture
    if unit.module == "canny":
        thresholds = {"low": unit.threshold_a, "high": unit.threshold_b}
        fields["options"] = {name: value for name, value in thresholds.items() if value >= 0}
    masks = (unit.mask, unit.mask_image, drawn, unit.effective_region_mask)
    if (area := _read_area(masks)) is not None:
        fields["mask"] = area
    try:
        return Control.model_validate(fields)
    except RequestError as error:
        field = f"{CONTROLNET_FIELD}.{CLIENT_FIELDS.get(error.field, error.field)}"
        raise RequestError(field, error.message) from None


def _resolve_weighting(unit: Unit) -> Weighting:
    if unit.guess_mode or unit.guessmode:
        return "guess"
    return WEIGHTING_BY_CONTROL_MODE[unit.control_mode]


def find_kind(preprocessor: str) -> str | None:
    """Return the kind of control image that a preprocessor makes; None if it is unknown."""
    return (KIND_BY_PREPROCESSOR | KIND_BY_OLD_PREPROCESSOR).get(preprocessor)


def _resolve_kind(unit: Unit) -> str:
    """Return the kind of a unit's control image, by its preprocessor or its ControlNet's name."""
    field = f"{CONTROLNET_FIELD}.module"
    if unit.module not in NO_PREPROCESSOR:
        if (kind := find_kind(unit.module)) is None:
            hint = did_you_mean(unit.module, KIND_BY_PREPROCESSOR)
            raise RequestError(field, f"Unknown preprocessor {quote_value(unit.module)}.{hint}")
        return kind
    name = unit.model.lower()
    kinds = {kind for word, kind in KIND_BY_MODEL_WORD.items() if word in name}
    if len(kinds) != 1:
        raise RequestError(
            field,
            f"The name of the ControlNet, {quote_value(unit.model)}, does not tell the kind of "
            "control image; choose a preprocessor, or a model with the kind in its name.",
        )
    return kinds.pop()


def _check_passes(unit: Unit) -> None:
    """Check that a ControlNet acts in both passes.

    Raises:
        RequestError: it acts in one of them.
    """
    if unit.hr_option.lower() not in BOTH_PASSES:
        raise RequestError(
            f"{CONTROLNET_FIELD}.hr_option",
            f"{quote_value(unit.hr_option)} is not supported with enable_hr; use 'Both'.",
        )


def _split_image(image: Any) -> tuple[Any, str | None]:
    """Return the image of a unit, and the mask that was drawn over it.

    Clients send a text, an object with `image` and `mask`, or a list of one of them.
    """
    if isinstance(image, list) and len(image) == 1:
        return _split_image(image[0])
    if not isinstance(image, Mapping):
        return image, None
    for name in image.keys() - {"image", "mask"}:
        report_ignored(f"{CONTROLNET_FIELD}.image.{str(name)[:MAX_NAME_CHARS]}")
    mask = image.get("mask")
    return image.get("image"), mask if isinstance(mask, str) else None


def _read_area(masks: Sequence[str | None]) -> Picture | None:
    """Return the area in which a ControlNet acts: where all masks are white.

    Returns:
        None if there is no mask. A black mask limits nothing: clients send it for no mask.
    """
    field = f"{CONTROLNET_FIELD}.mask"
    area: Image.Image | None = None
    for text in filter(None, masks):
        mask = read_gray(decode_image(field, text), field)
        if mask.getextrema() != (0, 0):
            area = mask if area is None else ImageChops.multiply(area, mask.resize(area.size))
    return None if area is None else encode_mask(area)


def _read_image(unit: Unit, image: Any, given: TextInputs | ImageInputs) -> Picture | None:
    """Return the image of a unit; None if its preprocessor uses the image to repaint."""
    field = f"{CONTROLNET_FIELD}.image"
    if is_empty(image):
        if not isinstance(given, ImageInputs):
            raise RequestError(field, "The unit has no image; send one.")
        if unit.module not in NO_PREPROCESSOR:
            return None
        image = given.init_images[0]
    if not isinstance(image, str):
        raise RequestError(field, "The value is neither base64 nor a data: URI.")
    return codec.receive_picture(decode_image(field, image), field)
