"""The wire format of AUTOMATIC1111's API: inputs and errors.

Fields mean the same as in AUTOMATIC1111's web UI, with these differences:

- Without a size, images have the model's native size instead of 512x512.
- The masked region is painted at the model's native size.
- A refiner takes over at a noise level instead of a number of steps.

Unknown fields have no effect, as in the web UI. A field that asks for another picture, which
Overpaint cannot make, is rejected.
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from fastapi.responses import JSONResponse
from pydantic import AfterValidator, Field

from overpaint.request.fields import MAX_SEED
from overpaint.server.api.a1111.option_fields import A1111Model, Options
from overpaint.server.api.ignored_fields import Ignored, UnsupportedExcept
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


def _round_side(side: int) -> int:
    """Round a side down to a multiple of 8, as AUTOMATIC1111's latents do."""
    return side // 8 * 8


Side = Annotated[int, Field(ge=8, le=8192), AfterValidator(_round_side)]
"""Width or height of the result in pixels."""

Text = Annotated[str, Field(max_length=100_000)]


FALSE_TEXTS = ("false", "0", "no", "off", "n", "f")


def is_false(value: Any) -> bool:
    """Return whether a client's value is absent, empty or false, also as text."""
    return not value or str(value).lower() in FALSE_TEXTS


class Inputs(A1111Model):
    """Fields of both txt2img and img2img."""

    prompt: Text = ""
    """Text that describes the image, with attention weights, `<lora:…>` tags and names of
    embeddings."""
    negative_prompt: Text = ""
    """Text that describes what the image must not show."""
    steps: int = Field(default=50, ge=1, le=1000)
    """Number of sampler steps (`num_inference_steps`)."""
    cfg_scale: float = Field(default=7.0, ge=0, le=50)
    """How closely the image follows the prompt (`guidance_scale`)."""
    width: Side | None = None
    """Width of the result in pixels, rounded down to a multiple of 8; by default the model's native
    width."""
    height: Side | None = None
    """Height of the result in pixels, rounded down to a multiple of 8; by default the model's
    native height."""
    seed: int = Field(default=-1, le=MAX_SEED)
    """Seed of the first image; a negative number draws a random seed."""
    subseed: int = Field(default=-1, le=MAX_SEED)
    """Seed of a variation (`subseed`); a negative number draws a random one."""
    subseed_strength: float = Field(default=0, ge=0, le=1)
    """How much of the noise comes from the variation's seed (`subseed_strength`)."""
    batch_size: int = Field(default=1, ge=1, le=64)
    """Images per iteration; n_iter times this is the number of images (`num_images`)."""
    n_iter: int = Field(default=1, ge=1, le=64)
    """Iterations; batch_size times this is the number of images (`num_images`)."""
    sampler_name: str | None = None
    """Name of the sampler (`sampler`)."""
    sampler_index: str = "Euler"
    """Name of the sampler (`sampler`) if sampler_name is absent."""
    scheduler: str = "Automatic"
    """Name of the schedule of noise levels (`schedule`). A sampler name that ends with a schedule
    takes precedence."""
    eta: float | None = None
    """Noise that each step adds: 1 for stochastic samplers, 0 for DDIM; other values are rejected
    with these samplers."""
    s_churn: float = 0
    """Noise that Euler, Heun and DPM2 add before each step; only 0 is supported with them."""
    s_noise: float = 1
    """Scale of the noise of stochastic samplers; only 1 is supported with them."""
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
    force_task_id: str | None = Field(default=None, max_length=200)
    """Name of the request for /internal/progress and /sdapi/v1/interrupt."""
    alwayson_scripts: dict[Annotated[str, Field(max_length=100)], Any] = Field(default_factory=dict)
    """ControlNet units (`controls`); other scripts are accepted only if they are off."""

    script_name: Annotated[str, UnsupportedExcept("", "None", "none")] = ""
    script_args: Ignored = None  # those of script_name
    styles: Ignored = None  # the web UI ignores names that it does not know
    restore_faces: Annotated[bool, UnsupportedExcept(False)] = False
    tiling: Annotated[bool, UnsupportedExcept(False)] = False
    s_min_uncond: Annotated[float, UnsupportedExcept(0)] = 0
    disable_extra_networks: Annotated[bool, UnsupportedExcept(False)] = False
    infotext: Annotated[Any, UnsupportedExcept("")] = ""
    seed_resize_from_h: int = -1
    """Height of the noise in pixels. With a seed_resize_from_w above 0, another height than that of
    the result is rejected."""
    seed_resize_from_w: int = -1
    """Width of the noise in pixels. With a seed_resize_from_h above 0, another width than that of
    the result is rejected."""
    # A Krita plug-in sends this name; "None" stands for no refiner.
    refiner: Annotated[str, UnsupportedExcept("", "None")] = ""

    comments: Ignored = None
    s_tmin: Ignored = None  # both limit s_churn
    s_tmax: Ignored = None
    save_images: Ignored = False
    do_not_save_samples: Ignored = False
    do_not_save_grid: Ignored = False
    # SillyTavern sends the address and the credentials that its user configured.
    url: Ignored = None
    auth: Ignored = None


class TextInputs(Inputs):
    """Fields of txt2img. Fields of the second pass have an effect only with enable_hr."""

    enable_hr: bool = False
    """Run a second pass at a larger size (`refine`)."""
    hr_scale: float = Field(default=2.0, ge=1, le=4)
    """Factor by which the second pass enlarges the sides (`upscale`)."""
    hr_upscaler: str = LATENT_UPSCALER
    """Enlarge latents or pixels (`upscale_in`): "Latent", "Lanczos" or "None"."""
    hr_second_pass_steps: int = Field(default=0, ge=0, le=1000)
    """Steps of the second pass (`refine_steps`); 0 runs as many as the first pass."""
    hr_resize_x: int = Field(default=0, ge=0, le=8192)
    """Width after the second pass (`upscale_to`), in place of hr_scale; 0 follows from hr_resize_y.
    With both, the image is cropped to their aspect."""
    hr_resize_y: int = Field(default=0, ge=0, le=8192)
    """Height after the second pass (`upscale_to`), in place of hr_scale; 0 follows from
    hr_resize_x."""
    hr_checkpoint_name: Text = ""
    """Only the model of the first pass is supported."""
    hr_sampler_name: Text = ""
    """Only the sampler of the first pass is supported."""
    hr_scheduler: Text = ""
    """Only the scheduler of the first pass is supported."""
    hr_prompt: Text = ""
    """Only the prompt of the first pass is supported."""
    hr_negative_prompt: Text = ""
    """Only the negative prompt of the first pass is supported."""

    firstphase_width: Annotated[int, UnsupportedExcept(0)] = 0
    firstphase_height: Annotated[int, UnsupportedExcept(0)] = 0
    hr_additional_modules: Ignored = None

    @classmethod
    def list_unused(cls, fields: Mapping[str, Any]) -> Collection[str]:
        """Return the fields of the second pass, unless enable_hr is true."""
        return UNUSED_WITHOUT_SECOND_PASS if is_false(fields.get("enable_hr")) else ()


class ImageInputs(Inputs):
    """Fields of img2img. Fields about masks have an effect only with a mask."""

    init_images: list[str] = Field(min_length=1, max_length=64)
    """The image to repaint (`image`): base64 or a data: URI. Each of several images gives one
    result per iteration; batch_size then has no effect."""
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
    mask_blur: int | None = Field(default=None, ge=0, le=256)
    """Blur of the mask's edge: the standard deviation in pixels; 4 by default."""
    mask_blur_x: int = Field(default=4, ge=0, le=256)
    """Horizontal blur if mask_blur is absent; only the value of mask_blur_y is supported."""
    mask_blur_y: int = Field(default=4, ge=0, le=256)
    """Vertical blur if mask_blur is absent; only the value of mask_blur_x is supported."""
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

    initial_noise_multiplier: Annotated[float, UnsupportedExcept(1)] = 1
    latent_mask: Annotated[Any, UnsupportedExcept()] = None
    image_cfg_scale: Ignored = None  # it concerns models that take an image as a prompt

    @classmethod
    def list_unused(cls, fields: Mapping[str, Any]) -> Collection[str]:
        """Return the fields about masks, unless there is a mask."""
        return () if fields.get("mask") else MASK_FIELDS


UNUSED_WITHOUT_SECOND_PASS = (
    *(name for name in TextInputs.model_fields if name.startswith("hr_")),
    "denoising_strength",
)
"""Fields without effect unless enable_hr is true."""

MASK_FIELDS = tuple(
    name
    for name in ImageInputs.model_fields
    if name.startswith(("mask_", "inpaint")) and name != "mask"
)
"""Fields without effect unless there is a mask."""


class PngInfoRequest(A1111Model):
    """An image to read settings from."""

    image: str
    """Base64 or a data: URI."""
