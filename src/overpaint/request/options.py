"""The fields of a request as typed keywords, for the editors of callers."""

from collections.abc import Sequence
from typing import TypedDict

from overpaint.picture_sources import PictureSource
from overpaint.registry import Fill, Preset, Space, Task
from overpaint.request.fields import (
    Crop,
    Fit,
    Interval,
    LengthPair,
    Margins,
    Prompt,
    Refine,
    Side,
    Size,
    StepsMode,
)
from overpaint.request.parts import Control, Lora, ModelName


class RequestOptions(TypedDict, total=False):
    """Every field of `Request` but `prompt` and `image`, which documents their meanings."""

    prompt_2: Prompt | None
    negative_prompt: Prompt
    negative_prompt_2: Prompt | None
    strength: float | None
    width: Side | None
    height: Side | None
    size: Size
    fit: Fit | None
    mask: PictureSource | None
    mask_from: str | None
    mask_invert: bool
    mask_grow: int
    mask_blur: int
    extend: Margins
    task: Task | None
    langevin_steps: int
    fill: Fill | None
    crop: Crop
    match_colors: bool
    match_image_colors: bool
    preset: Preset
    num_inference_steps: int
    steps: StepsMode
    guidance_scale: float
    guidance_rescale: float
    guidance_interval: Interval
    sampler: str
    schedule: str
    seed: int
    subseed: int | None
    subseed_strength: float
    num_images: int
    vae: ModelName | None
    decoder: ModelName | None
    refiner: ModelName | None
    refine: Refine | None
    high_noise_frac: float
    refine_strength: float
    refine_steps: int | None
    upscale: float
    upscale_to: tuple[int, int] | None
    upscale_in: Space
    aesthetic_score: float
    negative_aesthetic_score: float
    loras: Sequence[Lora | ModelName]
    lora_lenient: bool
    controls: Sequence[Control]
    clip_skip: int
    original_size: LengthPair | None
    crops_coords_top_left: LengthPair
    target_size: LengthPair | None
    negative_original_size: LengthPair | None
    negative_crops_coords_top_left: LengthPair | None
    negative_target_size: LengthPair | None


class RequestArguments(RequestOptions, total=False):
    """The parameters of `Request`."""

    prompt: Prompt
    image: PictureSource | None
