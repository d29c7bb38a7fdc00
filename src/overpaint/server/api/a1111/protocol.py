"""AUTOMATIC1111's words for what we do: the fields of txt2img and img2img, and its options.

Fields mean what they mean there, but for these: a size that is left out is the model's own, not
512x512; a mask's region is painted at the model's own size; a refiner takes over by noise level,
not by the count of steps; a sampler's name and a scheduler that contradict each other are refused.
What cannot be honoured is refused by name, unless it has the value that changes nothing.
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
UPSCALERS = ("None", "Lanczos")
"""Of pixels; "None" is a plain resize there, by the same filter."""


CONTROL_NET = "alwayson_scripts.ControlNet"


class Only:
    """Of a field that has no counterpart here: the values that change nothing."""

    def __init__(self, *values: Any):
        self.values = values

    def check(self, value: Any) -> Any:
        """The value, if it is one of them."""
        if value not in self.values:
            raise ValueError(f"{quote_value(value)} cannot be honoured here; leave it out.")
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
            "description": "No counterpart here: as it is, or refused.",
        }
        return {**handler(schema), **own}


Idle = Annotated[Any, Field(exclude=True, description="Means nothing here, and is not kept.")]


def _nullable(schema: dict[str, Any]) -> None:
    """Say that every field may be null, and that unknown ones may be nothing else."""
    fields = schema["properties"]
    for name, field in fields.items():
        said = {word: field.pop(word) for word in ("description", "default") if word in field}
        fields[name] = {"anyOf": [field, {"type": "null"}], **said}
    schema["additionalProperties"] = {"type": "null"}


class Words(BaseModel):
    """Null is the same as left out, as it is there."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, json_schema_extra=_nullable)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            return {name: value for name, value in data.items() if value is not None}
        return data


class Options(Words):
    """The options that there are; as `override_settings` they hold for one request."""

    sd_model_checkpoint: str | None = Field(
        default=None, max_length=500, description="Model, by its title; by default the first."
    )
    CLIP_stop_at_last_layers: int = Field(
        default=1, ge=1, le=13, description="`clip_skip`: 1 and 2 are our 0, the penultimate layer."
    )
    samples_format: Literal["png", "jpg", "jpeg", "webp"] = Field(
        default="png", description="Of the files that are made."
    )
    jpeg_quality: int = Field(default=80, ge=1, le=100, description="Of JPEG and WebP.")
    img2img_color_correction: bool = Field(default=False, description="With a mask `match_colors`.")
    sd_vae: Annotated[Any, Only("Automatic", "None", "")] = "Automatic"
    forge_additional_modules: Annotated[Any, Only([])] = []


class Inputs(Words):
    """What txt2img and img2img have in common."""

    prompt: str = Field(
        default="",
        max_length=100_000,
        description="What to draw; weights, `<lora:…>`, and the names of embeddings.",
    )
    negative_prompt: str = Field(
        default="", max_length=100_000, description="What to steer away from."
    )
    steps: int = Field(default=50, ge=1, le=1000, description="`num_inference_steps`.")
    cfg_scale: float = Field(default=7.0, ge=0, le=50, description="`guidance_scale`.")
    width: int | None = Field(default=None, ge=8, le=8192, description="Of the result.")
    height: int | None = Field(default=None, ge=8, le=8192, description="Likewise.")
    seed: int = Field(default=-1, ge=-1, le=MAX_SEED, description="-1 is at random.")
    batch_size: int = Field(default=1, ge=1, le=64, description="`num_images`, times n_iter.")
    n_iter: int = Field(default=1, ge=1, le=64, description="`num_images`, times batch_size.")
    sampler_name: str | None = Field(default=None, description="`sampler`.")
    sampler_index: str = Field(default="Euler", description="`sampler`, where no name is given.")
    scheduler: str = Field(default="Automatic", description="`schedule`.")
    eta: float | None = Field(
        default=None, description="Noise in every step: 1 of the stochastic samplers, 0 of DDIM."
    )
    denoising_strength: float | None = Field(
        default=None, ge=0, le=1, description="`strength`: 1 repaints all of it."
    )
    refiner_checkpoint: str | None = Field(
        default=None, max_length=500, description="`refiner`: the model of the last steps."
    )
    refiner_switch_at: float = Field(
        default=0.8, ge=0, le=1, description="`high_noise_frac`: where it takes over."
    )
    override_settings: Options = Field(
        default_factory=Options, description="Options for this request."
    )
    override_settings_restore_afterwards: bool = Field(
        default=True, description="If not, they hold for the requests that follow, too."
    )
    clip_skip: int | None = Field(
        default=None,
        ge=1,
        le=13,
        description="`clip_skip`, as CLIP_stop_at_last_layers; SD.Next's.",
    )
    send_images: bool = Field(default=True, description="Have pictures in the answer.")
    alwayson_scripts: dict[Annotated[str, Field(max_length=100)], Any] = Field(
        default_factory=dict, description="ControlNet: `controls`; others if they are off."
    )

    script_name: Annotated[Any, Only("", "None")] = ""
    script_args: Annotated[Any, Only([])] = []
    styles: Annotated[Any, Only([])] = []
    restore_faces: Annotated[Any, Only(False)] = False
    tiling: Annotated[Any, Only(False)] = False
    subseed_strength: Annotated[Any, Only(0)] = 0
    seed_resize_from_h: Annotated[Any, Only(-1, 0)] = -1
    seed_resize_from_w: Annotated[Any, Only(-1, 0)] = -1
    s_churn: Annotated[Any, Only(0)] = 0
    s_tmin: Annotated[Any, Only(0)] = 0
    s_noise: Annotated[Any, Only(1)] = 1
    s_min_uncond: Annotated[Any, Only(0)] = 0
    disable_extra_networks: Annotated[Any, Only(False)] = False
    comments: Annotated[Any, Only({})] = {}
    infotext: Annotated[Any, Only("")] = ""
    refiner: Annotated[Any, Only("", "None")] = ""  # of a Krita plug-in, where there is none

    subseed: Idle = -1
    s_tmax: Idle = None
    save_images: Idle = False
    do_not_save_samples: Idle = False
    do_not_save_grid: Idle = False
    force_task_id: Idle = None
    url: Idle = None
    auth: Idle = None  # SillyTavern's, of the user


class TextInputs(Inputs):
    """The fields of txt2img."""

    enable_hr: bool = Field(default=False, description="`refine`: a second pass, larger.")
    hr_scale: float = Field(default=2.0, ge=1, le=4, description="`upscale`.")
    hr_upscaler: str = Field(
        default=LATENT_UPSCALER, description="`upscale_in`: latents, or pixels."
    )
    hr_second_pass_steps: int = Field(
        default=0, ge=0, le=1000, description="`refine_steps`; 0 is as many as the first's."
    )
    hr_resize_x: int = Field(default=0, description="With a second pass refused; give hr_scale.")
    hr_resize_y: int = Field(default=0, description="Likewise.")
    hr_checkpoint_name: str = Field(default="", description="The first pass's, or refused.")
    hr_sampler_name: str = Field(default="", description="Likewise.")
    hr_scheduler: str = Field(default="", description="Likewise.")
    hr_prompt: str = Field(default="", description="Likewise.")
    hr_negative_prompt: str = Field(default="", description="Likewise.")

    firstphase_width: Annotated[Any, Only(0)] = 0
    firstphase_height: Annotated[Any, Only(0)] = 0
    hr_additional_modules: Annotated[Any, Only([])] = []


class ImageInputs(Inputs):
    """The fields of img2img; those of masks count with a mask alone."""

    init_images: list[str] = Field(
        min_length=1, max_length=1, description="`image`: base64, or a data: URI."
    )
    resize_mode: Literal[0, 1, 2] = Field(default=0, description="`fit`: stretch, cover, contain.")
    denoising_strength: float = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=0.75, ge=0, le=1, description="`strength`: 1 repaints all of it."
    )
    mask: str | None = Field(
        default=None, description="What is repainted: white is, and what is not transparent."
    )
    mask_round: bool = Field(default=True, description="Greys are black or white.")
    mask_blur: int = Field(default=4, ge=0, le=256, description="Of its edge; sigma in pixels.")
    mask_blur_x: int | None = Field(default=None, description="As mask_blur, or refused.")
    mask_blur_y: int | None = Field(default=None, description="Likewise.")
    inpainting_fill: Literal[0, 1, 2, 3] = Field(
        default=0,
        description="`fill`: surroundings, original, noise, flat.",
    )
    inpaint_full_res: bool = Field(
        default=True,
        description="`crop`: paint the masked region alone, at the model's own size; width and "
        "height are then without a meaning, and the result has the picture's.",
    )
    inpaint_full_res_padding: int = Field(
        default=0, ge=0, le=4096, description="`crop`: pixels that are seen around it."
    )
    inpainting_mask_invert: bool = Field(
        default=False, description="`mask_invert`: black is repainted, white kept."
    )
    include_init_images: bool = Field(
        default=False, description="Have the pictures that were given in the answer."
    )

    initial_noise_multiplier: Annotated[Any, Only(1)] = 1
    latent_mask: Annotated[Any, Only(None)] = None
    image_cfg_scale: Idle = None  # of models that take a picture as a prompt


def error_response(error: Exception) -> JSONResponse:
    """The answer to one of `problems.HANDLED_ERRORS`."""
    status, title, detail, headers = describe_error(error)
    body = {
        "error": type(error).__name__,
        "detail": detail,
        "body": "",
        "errors": detail if isinstance(detail, str) else title,
    }
    return JSONResponse(body, status, headers)


ERROR = {"type": "object", "required": ["error", "detail", "body", "errors"]}
"""The schema of an error in their words."""


class Generated(BaseModel):
    """What came of a request.

    Attributes:
        images: as base64.
        parameters: what was asked for.
        info: JSON: the seeds, and the settings as they are in the pictures.
    """

    images: list[str]
    parameters: dict[str, Any]
    info: str


class State(BaseModel):
    """Where the desk is."""

    skipped: bool = False
    interrupted: bool = False
    stopping_generation: bool = False
    job: str = ""
    job_count: int = 0
    job_timestamp: str = "0"
    job_no: int = 0
    sampling_step: int = 0
    sampling_steps: int = 0


class Progress(BaseModel):
    """How far the newest job is.

    Attributes:
        progress: 0 with nothing under way, to 1.
        eta_relative: seconds until it has ended, about.
        state: the same in counts.
        current_image: a preview, as base64.
        textinfo: in words.
        current_task: the job's id.
    """

    progress: float = 0.0
    eta_relative: float = 0.0
    state: State = Field(default_factory=State)
    current_image: str | None = None
    textinfo: str | None = None
    current_task: str | None = None


class PictureInfo(BaseModel):
    """The settings in a picture.

    Attributes:
        info: the text.
        items: all texts of the file.
        parameters: what stands in the text's last line.
    """

    info: str
    items: dict[str, str]
    parameters: dict[str, str]


class PictureIn(BaseModel):
    """A picture as base64, or as a data: URI."""

    image: str
