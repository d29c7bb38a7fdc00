"""The fields of a request: types, ranges, defaults and documentation.

`Request` in `request/model.py` adds the values that follow from them and the checks between them.
"""

import re
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from overpaint.errors import RequestError
from overpaint.picture import Picture
from overpaint.registry import Fill, Preset, Space, Task
from overpaint.request.parts import Control, Lora, ModelName, StrictModel

DEFAULT_STRENGTH = 0.6
MAX_CONTROLS = 16
MAX_EMBEDDINGS = 32
MAX_LORAS = 32
MAX_PROMPT_CHARS = 100_000
MAX_PROMPT_CHUNKS = 64
"""Chunks of 75 tokens of a prompt. Each one costs SDXL 26 MB of keys and values in 16 bits."""
MAX_SEED = 2**63 - 1

FIELD_ALIASES = {"match_colours": "match_colors"}
"""Fields that were published under another name, which is still accepted."""

Fit = Literal["cover", "contain", "stretch"]
Length = Annotated[int, Field(ge=0, le=16384)]
LengthPair = tuple[Length, Length]
Margin = Annotated[int, Field(ge=0, le=4096)]
Margins = tuple[Margin, Margin, Margin, Margin]
Fraction = Annotated[float, Field(ge=0, le=1)]
Interval = tuple[Fraction, Fraction]
Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARS, pattern=r"^[^\x00]*$")]
Refine = Literal["ensemble", "sequential"]
Side = Annotated[int, Field(ge=8, le=8192, multiple_of=8)]
Size = Literal["native", "keep"]
StepsMode = Literal["exact", "truncate"]
Crop = Literal["auto", "off"] | Annotated[int, Field(ge=0, le=4096)]

BREAK_PATTERN = re.compile(r"\bBREAK\b")
"""The word that ends a chunk of a prompt."""

EMBEDDING_PATTERN = re.compile(r"<embedding:([^<>:]+)>")
"""A textual inversion embedding in a prompt; group 1 is its name."""


def resolve_field_aliases(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a request under their current names.

    Raises:
        RequestError: both names of a field are given.
    """
    resolved = dict(fields)
    for alias, name in FIELD_ALIASES.items():
        if alias in resolved:
            if name in resolved:
                raise RequestError(alias, f"It is an alias of {name}. Give one of the two.")
            resolved[name] = resolved.pop(alias)
    return resolved


class RequestFields(StrictModel):
    """The fields of `Request`, in the order of its JSON."""

    prompt: Prompt = ""
    """The picture to paint, in words, up to 100,000 characters and 64 chunks of 75 tokens. A1111's
    weights apply: `(word:1.2)`, `((word))`, `[word]`, escaped parentheses and `BREAK`, which begins
    a new chunk. `<lora:name:0.8>` moves to `loras`, also with A1111's `te=`, `unet=` and `lbw=`;
    `<embedding:name>` uses a textual inversion embedding, up to 32 of them in all prompts."""

    prompt_2: Prompt | None = None
    """The prompt for the second text encoder. Default: `prompt`."""

    negative_prompt: Prompt = ""
    """Words to steer away from. It has an effect only with `guidance_scale` above 1."""

    negative_prompt_2: Prompt | None = None
    """The negative prompt for the second text encoder. Default: `negative_prompt`."""

    image: Picture | None = None
    """The picture to repaint. Without it, a picture is created from the prompt alone."""

    strength: float | None = Field(default=None, ge=0, le=1)
    """How much of `image` is repainted: 0 only resizes it, 1 starts from pure noise. Default: 0.6,
    or the strength of `task` with a mask. It needs `image`."""

    width: Side | None = None
    """The width of the result in pixels: 8 to 8192, a multiple of 8. Default: see `size`."""

    height: Side | None = None
    """The height of the result in pixels: 8 to 8192, a multiple of 8. Default: see `size`."""

    size: Size = "native"
    """The size of the result if `width` and `height` are missing. "native" keeps the aspect ratio
    of `image` at the area that the model was trained on. "keep" takes the exact size of `image`; it
    is the default with a mask."""

    fit: Fit | None = None
    """How `image` is fitted if the aspect ratio of the result differs: "cover" crops it, "contain"
    pads it, "stretch" distorts it. Default: "cover". It needs `image`."""

    mask: Picture | None = None
    """The part of `image` to repaint: white is repainted, black is kept bit by bit, gray scales the
    strength (Differential Diffusion, arXiv 2306.00950). In a mask with transparency, the
    transparent part is repainted, or white strokes on a clear layer. It needs the size of
    `image`."""

    mask_from: Annotated[str, Field(max_length=10_000)] | None = None
    """A mask in words, in place of `mask`: "box:LEFT,TOP,RIGHT,BOTTOM", "ellipse:" with the same
    numbers, "polygon:X,Y,X,Y,X,Y…", or "color:" and a CSS color."""

    mask_invert: bool = False
    """Repaint the part that the mask keeps, and keep the part that it repaints."""

    mask_grow: int = Field(default=0, ge=-512, le=512)
    """Pixels by which the edge of the mask moves outward, -512 to 512; negative shrinks the
    mask."""

    mask_blur: int = Field(default=0, ge=0, le=512)
    """Pixels to each side of its edge over which the mask is softened, 0 to 512. The blur follows
    `mask_grow`."""

    extend: Margins = (0, 0, 0, 0)
    """Pixels to add at the left, top, right and bottom of `image` and to paint, 0 to 4096 each. A
    large extension is painted in steps at the native size, unless `crop` forbids it."""

    task: Task | None = None
    """The purpose of the mask, which sets the defaults of `strength` and `fill`: "retouch",
    "replace", "remove" or "extend". Default: "replace", or "extend" with `extend` alone."""

    langevin_steps: int = Field(default=0, ge=0, le=20)
    """Langevin steps of the masked part before each step, 0 to 20 (LanPaint, arXiv 2502.03491).
    They fit the painted part to its surroundings, with any model.
    Each one takes half as long as a guided step; 5 are usual. It needs a mask."""

    fill: Fill | None = None
    """The content of the mask before painting: "original", "surroundings" (blurred into the mask),
    "flat" (their mean color) or "noise" (latent noise). Default: that of `task`."""

    crop: Crop = "auto"
    """Paint the masked region alone, enlarged to the size that the model was trained
    on: "auto" does so if the region is small, "off" never. A number (0 to 4096) does so with that
    many pixels of context around the region."""

    match_colors: bool = True
    """Shift the colors of the repainted part to those of the picture around it."""

    match_image_colors: bool = False
    """Give the whole result the colors of `image`, and keep its brightness. It cannot be used with
    a mask; see `match_colors`."""

    preset: Preset = "quality"
    """Less work for a different picture: "quality" is exact; "fast" runs fewer steps, the last of
    them without guidance; "turbo" uses a few-step LoRA or checkpoint. Fields that the request sets
    stay."""

    num_inference_steps: int = Field(default=30, ge=1, le=1000)
    """Sampler steps, 1 to 1000; `steps` sets their meaning below strength 1."""

    steps: StepsMode = "exact"
    """How many steps run: "exact" runs `num_inference_steps` at every strength, "truncate" runs
    int(steps × strength) of them, like diffusers and Replicate."""

    guidance_scale: float = Field(default=5.0, ge=0, le=50)
    """The scale of classifier-free guidance (arXiv 2207.12598): above 1 up to 50; 0 and 1 turn
    guidance off."""

    guidance_rescale: float = Field(default=0.0, ge=0, le=1)
    """How much of the guided prediction's contrast is corrected, 0 (nothing) to 1
    (arXiv 2305.08891, section 3.4)."""

    guidance_interval: Interval = (0.0, 1.0)
    """The part of the denoising range in which guidance acts, as two fractions from 0 (pure noise)
    to 1 (clean) (arXiv 2404.07724)."""

    sampler: str = "dpmpp_2m"
    """The integrator, such as euler, heun or dpmpp_2m. The names of A1111, diffusers and Replicate
    are accepted."""

    schedule: str = "karras"
    """The noise levels of the steps, such as karras, normal or beta. The names of A1111, diffusers
    and Replicate are accepted."""

    seed: int = Field(default_factory=lambda: secrets.randbits(32), ge=0, le=MAX_SEED)
    """The seed of the first picture, 0 to 2^63 - 1; picture i has seed + i, unless
    `subseed_strength` is above 0. Default: random."""

    subseed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    """The seed of a second noise, from which `subseed_strength` mixes: 0 to 2^63 - 1. Default:
    random. Picture i has subseed + i, and all pictures have `seed`, as in A1111's variations."""

    subseed_strength: float = Field(default=0.0, ge=0, le=1)
    """How much of the noise comes from `subseed`: 0 (the picture of `seed`) to 1 (the picture of
    `subseed`)."""

    num_images: int = Field(default=1, ge=1, le=64)
    """Pictures to make, 1 to 64."""

    vae: ModelName | None = None
    """A VAE in place of the model's own, by the name of an added file. Default: the model's own."""

    decoder: ModelName | None = None
    """A tiny decoder in place of the VAE's decoder, for speed: "tiny" for the model's usual one
    (TAESDXL for SDXL), or the name of an added file. It loses detail. Default: the VAE."""

    refiner: ModelName | None = None
    """The model of a second stage, by a name that `overpaint.load` accepts. Default: no second
    stage, or the same model with `upscale`."""

    refine: Refine | None = None
    """How the second stage works. "ensemble" (the default with `refiner` alone) runs the last,
    least noisy steps of the same schedule. "sequential" (the default with `upscale`) repaints the
    finished picture."""

    high_noise_frac: float = Field(default=0.8, ge=0, le=1)
    """The share of the denoising range that the first model of an ensemble runs, 0 to 1, by noise
    level."""

    refine_strength: float = Field(default=0.3, gt=0, le=1)
    """The strength of a sequential second stage, above 0 and up to 1."""

    refine_steps: int | None = Field(default=None, ge=1, le=1000)
    """The sampler steps of a sequential second stage, 1 to 1000. Default:
    `num_inference_steps`."""

    upscale: float = Field(default=1.0, ge=1, le=4)
    """The factor by which a second stage enlarges width and height, 1 to 4."""

    upscale_to: tuple[Side, Side] | None = None
    """The width and height of the result of a second stage in pixels, in place of `upscale`. If the
    aspect ratio differs, the picture is cropped. It cannot be used with `image`."""

    upscale_in: Space = "pixels"
    """The data that `upscale` and `upscale_to` resample (Lanczos): "pixels", or "latents", which is
    faster and softer."""

    aesthetic_score: float = Field(default=6.0, ge=1, le=10)
    """The aesthetic score on which the refiner conditions the picture, 1 to 10
    (arXiv 2307.01952). It needs `refiner`."""

    negative_aesthetic_score: float = Field(default=2.5, ge=1, le=10)
    """The aesthetic score of the refiner's unconditional row, 1 to 10. It needs `refiner`."""

    loras: tuple[Lora, ...] = Field(default=(), max_length=MAX_LORAS)
    """Up to 32 LoRAs. The scales of a LoRA that is given twice add up."""

    lora_lenient: bool = False
    """Skip and report the keys of a LoRA that fit no layer of the model, instead of rejecting the
    LoRA."""

    controls: tuple[Control, ...] = Field(default=(), max_length=MAX_CONTROLS)
    """Up to 16 control images that steer the structure of the result."""

    clip_skip: int = Field(default=0, ge=0, le=11)
    """Layers of the text encoders to skip, 0 to 11: 0 reads the penultimate layer, for which SDXL
    was trained, 1 the layer before it. A1111's "Clip skip: 2" is 0 here."""

    original_size: LengthPair | None = None
    """SDXL's size conditioning (arXiv 2307.01952, section 2.2): height and width in pixels of the
    picture before it was cropped. Default: those of the result."""

    crops_coords_top_left: LengthPair = (0, 0)
    """SDXL's crop conditioning: top and left of the crop in pixels."""

    target_size: LengthPair | None = None
    """SDXL's target size: height and width in pixels. Default: those of the result."""

    negative_original_size: LengthPair | None = None
    """`original_size` of the unconditional row. Default: `original_size`."""

    negative_crops_coords_top_left: LengthPair | None = None
    """`crops_coords_top_left` of the unconditional row. Default: `crops_coords_top_left`."""

    negative_target_size: LengthPair | None = None
    """`target_size` of the unconditional row. Default: `target_size`."""
