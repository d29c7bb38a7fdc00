"""The wire format of AUTOMATIC1111's API: inputs, options, responses and errors.

Fields mean the same as in AUTOMATIC1111's web UI, with these differences:

- Without a size, images have the model's native size instead of 512x512.
- The masked region is painted at the model's native size.
- A refiner takes over at a noise level instead of a number of steps.
- A sampler name and a scheduler that contradict each other are rejected.

A field that Overpaint cannot honor is rejected, unless it has the value that changes nothing.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi.responses import JSONResponse
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic_core import core_schema

from overpaint.errors import quote_value
from overpaint.request_fields import MAX_SEED
from overpaint.server.http.problems import describe_error

LATENT_UPSCALER = "Latent"
PIXEL_UPSCALERS = ("None", "Lanczos")
"""Upscalers of pixels. Both use Lanczos: "None" is a plain resize in AUTOMATIC1111 too."""

CONTROLNET_FIELD = "alwayson_scripts.ControlNet"

ERROR_SCHEMA = {"type": "object", "required": ["error", "detail", "body", "errors"]}
"""JSON schema of an error response."""


def error_response(error: Exception) -> JSONResponse:
    """Make the response to one of `problems.HANDLED_ERRORS`."""
    status, title, detail, headers = describe_error(error)
    body = {
        "error": type(error).__name__,
        "detail": detail,
        "body": "",
        "errors": detail if isinstance(detail, str) else title,
    }
    return JSONResponse(body, status, headers)


# Types of fields


class UnsupportedExcept:
    """Annotation of a field without effect: it accepts only values that change nothing."""

    def __init__(self, *values: Any):
        """Accept these values.

        Args:
            values: the values that change nothing.
        """
        self.values = values

    def check(self, value: Any) -> Any:
        """Return the value.

        Raises:
            ValueError: the value would change something.
        """
        if value not in self.values:
            raise ValueError(f"{quote_value(value)} is not supported; leave the field out.")
        return value

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        own = {
            "enum": list(self.values),
            "description": "Not supported: any other value is rejected.",
        }
        return {**handler(schema), **own}


Ignored = Annotated[Any, Field(exclude=True, description="Accepted without effect; not stored.")]


def _make_nullable(schema: dict[str, Any]) -> None:
    """Allow null for every field of a schema, and nothing but null for unknown fields."""
    fields = schema["properties"]
    for name, field in fields.items():
        kept = {word: field.pop(word) for word in ("description", "default") if word in field}
        fields[name] = {"anyOf": [field, {"type": "null"}], **kept}
    schema["additionalProperties"] = {"type": "null"}


class NullableModel(BaseModel):
    """A model that treats null as an absent field, as AUTOMATIC1111 does."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra=_make_nullable,
        use_attribute_docstrings=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            return {name: value for name, value in data.items() if value is not None}
        return data


# Requests


class Options(NullableModel):
    """Options of an API key; in `override_settings`, options of one request."""

    sd_model_checkpoint: str | None = Field(default=None, max_length=500)
    """Title of the model; by default the server's first model."""
    CLIP_stop_at_last_layers: int = Field(default=1, ge=1, le=13)
    """Text encoder layer to use, counted from the end (`clip_skip` plus 2). Both 1 and 2 use the
    penultimate layer."""
    samples_format: Literal["png", "jpg", "jpeg", "webp"] = "png"
    """File format of the images."""
    jpeg_quality: int = Field(default=80, ge=1, le=100)
    """Quality of JPEG and WebP files."""
    img2img_color_correction: bool = False
    """Match the colors of the repainted area to its surroundings (`match_colors`); needs a
    mask."""
    sd_vae: Annotated[Any, UnsupportedExcept("Automatic", "None", "")] = "Automatic"
    forge_additional_modules: Annotated[Any, UnsupportedExcept([])] = []


class Inputs(NullableModel):
    """Fields of both txt2img and img2img."""

    prompt: str = Field(default="", max_length=100_000)
    """Text that describes the image, with attention weights, `<lora:…>` tags and names of
    embeddings."""
    negative_prompt: str = Field(default="", max_length=100_000)
    """Text that describes what the image must not show."""
    steps: int = Field(default=50, ge=1, le=1000)
    """Number of sampler steps (`num_inference_steps`)."""
    cfg_scale: float = Field(default=7.0, ge=0, le=50)
    """How closely the image follows the prompt (`guidance_scale`)."""
    width: int | None = Field(default=None, ge=8, le=8192)
    """Width of the result in pixels; by default the model's native width."""
    height: int | None = Field(default=None, ge=8, le=8192)
    """Height of the result in pixels; by default the model's native height."""
    seed: int = Field(default=-1, ge=-1, le=MAX_SEED)
    """Seed of the first image; -1 draws a random seed."""
    batch_size: int = Field(default=1, ge=1, le=64)
    """Images per iteration; n_iter times this is the number of images (`num_images`)."""
    n_iter: int = Field(default=1, ge=1, le=64)
    """Iterations; batch_size times this is the number of images (`num_images`)."""
    sampler_name: str | None = None
    """Name of the sampler (`sampler`)."""
    sampler_index: str = "Euler"
    """Name of the sampler (`sampler`) if sampler_name is absent."""
    scheduler: str = "Automatic"
    """Name of the schedule of noise levels (`schedule`)."""
    eta: float | None = None
    """Noise that each step adds: 1 for stochastic samplers, 0 for DDIM; other values are
    rejected."""
    denoising_strength: float | None = Field(default=None, ge=0, le=1)
    """How much is repainted (`strength`), 0 to 1; 1 repaints everything."""
    refiner_checkpoint: str | None = Field(default=None, max_length=500)
    """Title of the model for the last steps (`refiner`)."""
    refiner_switch_at: float = Field(default=0.8, ge=0, le=1)
    """Fraction of the denoising range after which the refiner takes over (`high_noise_frac`)."""
    override_settings: Options = Field(default_factory=Options)
    """Options for this request."""
    override_settings_restore_afterwards: bool = True
    """If false, override_settings also applies to later requests."""
    clip_skip: int | None = Field(default=None, ge=1, le=13)
    """SD.Next's name for CLIP_stop_at_last_layers (`clip_skip`)."""
    send_images: bool = True
    """Include the images in the response."""
    alwayson_scripts: dict[Annotated[str, Field(max_length=100)], Any] = Field(default_factory=dict)
    """ControlNet units (`controls`); other scripts are accepted only if they are off."""

    script_name: Annotated[Any, UnsupportedExcept("", "None")] = ""
    script_args: Annotated[Any, UnsupportedExcept([])] = []
    styles: Annotated[Any, UnsupportedExcept([])] = []
    restore_faces: Annotated[Any, UnsupportedExcept(False)] = False
    tiling: Annotated[Any, UnsupportedExcept(False)] = False
    subseed_strength: Annotated[Any, UnsupportedExcept(0)] = 0
    seed_resize_from_h: Annotated[Any, UnsupportedExcept(-1, 0)] = -1
    seed_resize_from_w: Annotated[Any, UnsupportedExcept(-1, 0)] = -1
    s_churn: Annotated[Any, UnsupportedExcept(0)] = 0
    s_tmin: Annotated[Any, UnsupportedExcept(0)] = 0
    s_noise: Annotated[Any, UnsupportedExcept(1)] = 1
    s_min_uncond: Annotated[Any, UnsupportedExcept(0)] = 0
    disable_extra_networks: Annotated[Any, UnsupportedExcept(False)] = False
    comments: Annotated[Any, UnsupportedExcept({})] = {}
    infotext: Annotated[Any, UnsupportedExcept("")] = ""
    # A Krita plug-in sends this name; "None" stands for no refiner.
    refiner: Annotated[Any, UnsupportedExcept("", "None")] = ""

    subseed: Ignored = -1
    s_tmax: Ignored = None
    save_images: Ignored = False
    do_not_save_samples: Ignored = False
    do_not_save_grid: Ignored = False
    force_task_id: Ignored = None
    # SillyTavern sends the address and the credentials that its user configured.
    url: Ignored = None
    auth: Ignored = None


class TextInputs(Inputs):
    """Fields of txt2img."""

    enable_hr: bool = False
    """Run a second pass at a larger size (`refine`)."""
    hr_scale: float = Field(default=2.0, ge=1, le=4)
    """Factor by which the second pass enlarges the sides (`upscale`)."""
    hr_upscaler: str = LATENT_UPSCALER
    """Enlarge latents or pixels (`upscale_in`): "Latent", "Lanczos" or "None"."""
    hr_second_pass_steps: int = Field(default=0, ge=0, le=1000)
    """Steps of the second pass (`refine_steps`); 0 runs as many as the first pass."""
    hr_resize_x: int = 0
    """Not supported with a second pass; use hr_scale."""
    hr_resize_y: int = 0
    """Not supported with a second pass; use hr_scale."""
    hr_checkpoint_name: str = ""
    """Only the model of the first pass is supported."""
    hr_sampler_name: str = ""
    """Only the sampler of the first pass is supported."""
    hr_scheduler: str = ""
    """Only the scheduler of the first pass is supported."""
    hr_prompt: str = ""
    """Only the prompt of the first pass is supported."""
    hr_negative_prompt: str = ""
    """Only the negative prompt of the first pass is supported."""

    firstphase_width: Annotated[Any, UnsupportedExcept(0)] = 0
    firstphase_height: Annotated[Any, UnsupportedExcept(0)] = 0
    hr_additional_modules: Annotated[Any, UnsupportedExcept([])] = []


class ImageInputs(Inputs):
    """Fields of img2img. Fields about masks have an effect only with a mask."""

    init_images: list[str] = Field(min_length=1, max_length=1)
    """The image to repaint (`image`): base64 or a data: URI."""
    resize_mode: Literal[0, 1, 2] = 0
    """How the image is fitted to another aspect (`fit`): 0 stretch, 1 cover, 2 contain."""
    denoising_strength: float = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=0.75, ge=0, le=1
    )
    """How much of the image is repainted (`strength`), 0 to 1; 1 repaints everything."""
    mask: str | None = None
    """The area to repaint: white pixels, or opaque pixels if the mask has transparency."""
    mask_round: bool = True
    """Round gray pixels of the mask to black or white."""
    mask_blur: int = Field(default=4, ge=0, le=256)
    """Blur of the mask's edge: the standard deviation in pixels."""
    mask_blur_x: int | None = None
    """Only the value of mask_blur is supported."""
    mask_blur_y: int | None = None
    """Only the value of mask_blur is supported."""
    inpainting_fill: Literal[0, 1, 2, 3] = 0
    """Content of the area before painting (`fill`): 0 surroundings, 1 original, 2 noise, 3 flat
    color."""
    inpaint_full_res: bool = True
    """Paint only the masked region, at the model's native size (`crop`). The result then has the
    size of the image; width and height have no effect."""
    inpaint_full_res_padding: int = Field(default=0, ge=0, le=4096)
    """Pixels of context around the masked region (`crop`)."""
    inpainting_mask_invert: bool = False
    """Repaint black areas and keep white ones (`mask_invert`)."""
    include_init_images: bool = False
    """Include the image and the mask of the request in the response."""

    initial_noise_multiplier: Annotated[Any, UnsupportedExcept(1)] = 1
    latent_mask: Annotated[Any, UnsupportedExcept(None)] = None
    image_cfg_scale: Ignored = None  # it concerns models that take an image as a prompt


class PngInfoRequest(BaseModel):
    """An image to read settings from."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    image: str
    """Base64 or a data: URI."""


# Responses


class GenerationResponse(BaseModel):
    """Images and their settings."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    images: list[str]
    """Image files as base64."""
    parameters: dict[str, Any]
    """Fields of the request."""
    info: str
    """JSON text: seeds, and the settings text of each image."""


class ProgressState(BaseModel):
    """State of the newest job."""

    skipped: bool = False
    interrupted: bool = False
    stopping_generation: bool = False
    job: str = ""
    job_count: int = 0
    job_timestamp: str = "0"
    job_no: int = 0
    sampling_step: int = 0
    sampling_steps: int = 0


class ProgressResponse(BaseModel):
    """Progress of the newest job that has not ended."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    progress: float = 0.0
    """Progress from 0 to 1; 0 if no job is waiting or running."""
    eta_relative: float = 0.0
    """Estimated seconds until the job ends."""
    state: ProgressState = Field(default_factory=ProgressState)
    """The job and its steps."""
    current_image: str | None = None
    """A preview as base64."""
    textinfo: str | None = None
    """The number of jobs that run before this one."""
    current_task: str | None = None
    """Id of the job."""


class PngInfoResponse(BaseModel):
    """Settings of an image."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    info: str
    """AUTOMATIC1111's settings text; empty if the image has none."""
    items: dict[str, str]
    """All texts of the file's metadata."""
    parameters: dict[str, str]
    """Settings in the last line of the settings text."""
