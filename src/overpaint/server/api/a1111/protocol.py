"""AUTOMATIC1111's words for what we do: the fields of txt2img and img2img, and its options.

Fields mean what they mean there, but for these: a size that is left out is the model's own, not
512x512; a mask's region is painted at the model's own size; a refiner takes over by noise level,
not by the count of steps; a sampler's name and a scheduler that contradict each other are refused.
What cannot be honoured is refused by name, unless it has the value that changes nothing.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from io import BytesIO
from typing import Annotated, Any, Literal

from PIL import ImageOps
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic_core import core_schema

from overpaint.errors import RequestError, near, shown
from overpaint.imaging import images
from overpaint.provenance.foreign import a1111_schedule
from overpaint.registry import SAMPLERS, Fill, sampler_name
from overpaint.request import LARGEST_SEED, Control, Fit, Picture, Request
from overpaint.server.api.fields import fits, from_base64, from_data_uri, with_fitting_mask

RESIZE: dict[int, Fit] = {0: "stretch", 1: "cover", 2: "contain"}
"""Their `resize_mode`."""

FILLS: dict[int, Fill] = {0: "surroundings", 1: "original", 2: "noise", 3: "flat"}
"""Their `inpainting_fill`; "latent nothing" is our nearest, one colour."""

LATENT_UPSCALER = "Latent"
UPSCALERS = ("None", "Lanczos")
"""Of pixels; "None" is a plain resize there, by the same filter."""

SAME = ("", "None", "Use same checkpoint", "Use same sampler", "Use same scheduler")
"""What a second pass calls its being like the first."""

CONTROL_NET = "alwayson_scripts.ControlNet"

FIELDS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "width": "width",
    "height": "height",
}
"""Fields that are taken as they are, by their name: ours."""

THEIRS = {ours: theirs for theirs, ours in FIELDS.items()} | {
    "image": "init_images",
    "strength": "denoising_strength",
    "sampler": "sampler_name",
    "schedule": "scheduler",
    "num_images": "batch_size",
    "loras": "prompt",
    "controls": CONTROL_NET,
    "crop": "inpaint_full_res_padding",
    "clip_skip": "override_settings.CLIP_stop_at_last_layers",
    "refiner": "refiner_checkpoint",
    "high_noise_frac": "refiner_switch_at",
    "upscale": "hr_scale",
    "refine_strength": "denoising_strength",
    "refine_steps": "hr_second_pass_steps",
}
"""What a field of ours is called there, where something is wrong with it."""


class Only:
    """Of a field that has no counterpart here: the values that change nothing."""

    def __init__(self, *values: Any):
        self.values = values

    def check(self, value: Any) -> Any:
        """The value, if it is one of them."""
        if value not in self.values:
            raise ValueError(f"{shown(value)} cannot be honoured here; leave it out.")
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
    img2img_color_correction: bool = Field(
        default=False, description="With a mask `match_colours`."
    )
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
    seed: int = Field(default=-1, ge=-1, le=LARGEST_SEED, description="-1 is at random.")
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


def to_request(
    given: TextInputs | ImageInputs,
    options: Options,
    *,
    controls: Sequence[Control] = (),
    refiners: Collection[str] = (),
    embeddings: Collection[str] = (),
) -> Request:
    """What the inputs ask for.

    Args:
        given: the inputs.
        options: that hold for them.
        controls: what `alwayson_scripts` ask for.
        refiners: what `refiner_checkpoint` may name.
        embeddings: whose names in a prompt stand for themselves.

    Raises:
        RequestError: they contradict each other, or ask for what is not here; in their words.
        PictureError: a picture cannot be read.
    """
    try:
        fields = _fields(given, options, refiners, embeddings)
        return with_fitting_mask(Request(**fields, controls=tuple(controls)))
    except RequestError as error:
        raise in_their_words(error) from None


def in_their_words(error: RequestError) -> RequestError:
    """An error that names their field in place of ours."""
    field = error.field.split(".")[0]
    return RequestError(THEIRS.get(field, error.field), error.message)


def _fields(
    given: TextInputs | ImageInputs,
    options: Options,
    refiners: Collection[str],
    embeddings: Collection[str],
) -> dict[str, Any]:
    sampler, schedule = sampler_of(given.sampler_name or given.sampler_index, given.scheduler)
    _check_eta(given.eta, sampler)
    fields = {ours: getattr(given, theirs) for theirs, ours in FIELDS.items()}
    for field in ("prompt", "negative_prompt"):
        fields[field] = with_embeddings(fields[field], embeddings)
    skipped = given.clip_skip or options.CLIP_stop_at_last_layers
    fields |= {
        "sampler": sampler,
        "schedule": schedule,
        "num_images": given.batch_size * given.n_iter,
        "clip_skip": max(skipped - 2, 0),
    }
    if given.seed >= 0:
        fields["seed"] = given.seed
    if given.refiner_checkpoint not in (None, "", "None"):
        refiner = named("refiner_checkpoint", given.refiner_checkpoint, refiners)
        fields |= {"refiner": refiner, "high_noise_frac": given.refiner_switch_at}
        fields["refine"] = "ensemble"
    if isinstance(given, ImageInputs):
        return fields | _of_image(given, options)
    return fields | _second_pass(given)


def sampler_of(name: str, scheduler: str) -> tuple[str, str]:
    """Our names of a sampler and a schedule.

    Raises:
        RequestError: there are none by these names, or they contradict each other.
    """
    sampler, implied = sampler_name(name)
    if implied is None:
        return sampler, a1111_schedule(sampler, scheduler)
    if scheduler.lower() != "automatic" and a1111_schedule(sampler, scheduler) != implied:
        raise RequestError("scheduler", f"{scheduler!r} contradicts the sampler {name!r}.")
    return sampler, implied


def _check_eta(eta: float | None, sampler: str) -> None:
    wanted = 1.0 if SAMPLERS[sampler].stochastic else 0.0 if sampler == "ddim" else None
    if None not in (eta, wanted) and eta != wanted:
        raise RequestError("eta", f"{eta} cannot be honoured with {sampler}, which has {wanted}.")


def with_embeddings(prompt: str, names: Collection[str]) -> str:
    """A prompt whose embeddings' bare names are marked, as ours are."""
    if not names:
        return prompt
    longest = sorted(names, key=len, reverse=True)
    found = "|".join(map(re.escape, longest))
    known = {name.lower(): name for name in names}

    def marked(match: re.Match[str]) -> str:
        name = known.get(match[0].lower())  # not where it has what only resembles a letter: mıni
        return f"<embedding:{name}>" if name else match[0]

    return re.sub(rf"(?<![\w<:-])({found})(?![\w>-])", marked, prompt, flags=re.IGNORECASE)


def named(field: str, title: str | None, known: Collection[str]) -> str:
    """The name of a model that a title is of: "name", "name [hash]" or "name.safetensors".

    Raises:
        RequestError: there is none.
    """
    bare = re.sub(r" \[[0-9a-f]+\]$", "", title or "").removesuffix(".safetensors")
    for name in (title, bare):
        if name in known:
            return name or ""
    hint = near(bare, known) if known else ""
    raise RequestError(field, f"there is no model {shown(title)} here.{hint}")


def _second_pass(given: TextInputs) -> dict[str, Any]:
    if not given.enable_hr:
        return {}
    for field in ("hr_resize_x", "hr_resize_y"):
        if value := getattr(given, field):
            raise RequestError(field, f"{value} cannot be honoured; give hr_scale.")
    for field, first in {
        "hr_checkpoint_name": "",
        "hr_sampler_name": given.sampler_name or given.sampler_index,
        "hr_scheduler": given.scheduler,
        "hr_prompt": given.prompt,
        "hr_negative_prompt": given.negative_prompt,
    }.items():
        value = getattr(given, field)
        if value not in (*SAME, first):
            raise RequestError(field, f"{shown(value)} is not the first pass's; leave it out.")
    if given.hr_upscaler not in (LATENT_UPSCALER, *UPSCALERS):
        known = ", ".join((LATENT_UPSCALER, *UPSCALERS))
        raise RequestError("hr_upscaler", f"unknown {shown(given.hr_upscaler)}. Known: {known}.")
    if given.refiner_checkpoint not in (None, "", "None"):
        raise RequestError("refiner_checkpoint", "contradicts enable_hr; give one of the two.")
    strength = given.denoising_strength
    fields: dict[str, Any] = {
        "refine": "sequential",
        "upscale": given.hr_scale,
        "refine_strength": 0.75 if strength is None else strength,
        "refine_steps": given.hr_second_pass_steps or None,
    }
    if given.hr_scale != 1 and given.hr_upscaler == LATENT_UPSCALER:
        fields["upscale_in"] = "latents"
    return fields


def _of_image(given: ImageInputs, options: Options) -> dict[str, Any]:
    image = images.received(picture_data("init_images", given.init_images[0]), "init_images")
    fields: dict[str, Any] = {
        "image": image,
        "strength": given.denoising_strength,
        "steps": "truncate",
        "fit": RESIZE[given.resize_mode],
    }
    if not given.mask:
        if options.img2img_color_correction:
            raise RequestError(
                "override_settings.img2img_color_correction", "needs a mask; leave it out."
            )
        return fields
    for field in ("mask_blur_x", "mask_blur_y"):
        if getattr(given, field) not in (None, given.mask_blur):
            raise RequestError(field, "cannot differ from mask_blur; leave it out.")
    mask = picture_data("mask", given.mask)
    fits(image, images.received(mask, "mask"))
    fields |= {
        "mask": mask_of(mask, rounded=given.mask_round),
        "mask_invert": given.inpainting_mask_invert,
        "mask_blur": 2 * given.mask_blur,  # ours reaches over two sigmas
        "fill": FILLS[given.inpainting_fill],
        "match_colours": options.img2img_color_correction,
        "crop": given.inpaint_full_res_padding if given.inpaint_full_res else "off",
    }
    if given.inpaint_full_res:
        fields |= {"width": None, "height": None, "size": "keep"}
    return fields


def picture_data(field: str, text: str) -> bytes:
    """The bytes of a picture that is given as base64 or as a data: URI.

    Raises:
        RequestError: it is neither.
    """
    text = text.strip()
    if "," not in text:
        return from_base64(field, text)
    if not text.startswith("data:"):
        raise RequestError(field, "is neither base64 nor a data: URI.")
    return from_data_uri(field, text)


def mask_of(data: bytes, *, rounded: bool) -> Picture:
    """A mask as they mean it: where it has transparency, what is opaque is repainted.

    Raises:
        PictureError: it is no picture.
    """
    with images.opened(data, "the mask") as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        grey = images.opacity(image) or image.convert("L")
    if rounded:
        grey = grey.point([255 * (level > 128) for level in range(256)])
    file = BytesIO()
    grey.save(file, "PNG")
    return Picture(data=file.getvalue())
