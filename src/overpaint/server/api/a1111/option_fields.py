"""The options of AUTOMATIC1111's web UI that have an effect, and the base of its models."""

import math
import re
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from overpaint.server.api.ignored_fields import TolerantModel, UnsupportedExcept


def _make_nullable(schema: dict[str, Any]) -> None:
    """Allow null for every field of a schema."""
    fields = schema["properties"]
    for name, field in fields.items():
        kept = {word: field.pop(word) for word in ("description", "default") if word in field}
        fields[name] = {"anyOf": [field, {"type": "null"}], **kept}


def _lower_text(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


class A1111Model(TolerantModel):
    """A model that ignores null, empty and unknown fields, as AUTOMATIC1111 does."""

    model_config = ConfigDict(
        allow_inf_nan=False, json_schema_extra=_make_nullable, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _read_whole_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Read "2" and 2.7 as 2 where a field is a whole number, as pydantic 1 did."""
        field = cls.model_fields[info.field_name or ""]
        if not _is_whole_number(field.annotation):
            return value
        if isinstance(value, float) and math.isfinite(value):
            return int(value)
        if isinstance(value, str) and WHOLE_NUMBER_PATTERN.fullmatch(value.strip()):
            return int(value)
        return value


WHOLE_NUMBER_PATTERN = re.compile(r"-?[0-9]{1,20}")


@cache
def _is_whole_number(annotation: Any) -> bool:
    """Return whether a field has whole numbers, or is null."""
    if get_origin(annotation) is Annotated:
        return _is_whole_number(get_args(annotation)[0])
    if parts := get_args(annotation):
        return all(part is type(None) or _is_whole_number(part) for part in parts)
    return annotation is int or type(annotation) is int  # a number of a Literal


class Options(A1111Model):
    """Options of an API key; in `override_settings`, options of one request."""

    sd_model_checkpoint: str | None = Field(default=None, max_length=500)
    """Title of the model; by default the server's first model."""
    CLIP_stop_at_last_layers: int = Field(default=1, ge=0, le=13)
    """Text encoder layer to use, counted from the end (`clip_skip` plus 2). 0, 1 and 2 use the
    penultimate layer."""
    samples_format: Annotated[
        Literal["png", "jpg", "jpeg", "webp"], BeforeValidator(_lower_text)
    ] = "png"
    """File format of the images."""
    jpeg_quality: int = Field(default=80, ge=1, le=100)
    """Quality of JPEG and WebP files."""
    img2img_color_correction: bool = False
    """Match the colors of the repainted area to its surroundings (`match_colors`). Without a mask,
    match those of the result to the image (`match_image_colors`)."""
    sd_vae: str = Field(default="Automatic", max_length=500)
    """Name of an added VAE, in place of the model's own. "Automatic" and "None" use the model's
    own."""
    sd_vae_decode_method: Literal["Full", "TAESD"] = "Full"
    """"TAESD" decodes the images with the model's tiny decoder (`decoder`), with less detail."""

    # Options that change images in ways that Overpaint lacks.
    sd_hypernetwork: Annotated[str, UnsupportedExcept("", "None")] = "None"
    eta_noise_seed_delta: Annotated[int, UnsupportedExcept(0)] = 0
    initial_noise_multiplier: Annotated[float, UnsupportedExcept(1)] = 1
    img2img_extra_noise: Annotated[float, UnsupportedExcept(0)] = 0
    s_churn: Annotated[float, UnsupportedExcept(0)] = 0
    s_noise: Annotated[float, UnsupportedExcept(1)] = 1
    s_min_uncond: Annotated[float, UnsupportedExcept(0)] = 0
    skip_early_cond: Annotated[float, UnsupportedExcept(0)] = 0
    sigma_min: Annotated[float, UnsupportedExcept(0)] = 0
    sigma_max: Annotated[float, UnsupportedExcept(0)] = 0
    rho: Annotated[float, UnsupportedExcept(0)] = 0
    emphasis: Annotated[str, UnsupportedExcept("Original")] = "Original"
    sd_noise_schedule: Annotated[str, UnsupportedExcept("Default")] = "Default"
    tiling: Annotated[bool, UnsupportedExcept(False)] = False
    face_restoration: Annotated[bool, UnsupportedExcept(False)] = False


def override_options(options: Options, given: Options) -> Options:
    """Return options in which the given ones replace the others."""
    return options.model_copy(
        update={name: getattr(given, name) for name in given.model_fields_set}
    )
