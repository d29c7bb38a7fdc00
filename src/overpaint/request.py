"""What a user asks for: one frozen, validated, storable value."""

import hashlib
import re
import secrets
from functools import cache, cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from overpaint.errors import LONGEST_NAME, RequestError, near, shown
from overpaint.registry import (
    HINTS,
    TASKS,
    Fill,
    Space,
    Task,
    Weighting,
    sampler_name,
    schedule_name,
)

DEFAULT_STRENGTH = 0.6
MOST_CONTROLS = 16
MOST_WRONG = 10
"""Things that are wrong with a request and are told."""
LONGEST_PROMPT = 100_000
"""Characters."""
LARGEST_SEED = 2**63 - 1

Fit = Literal["cover", "contain", "stretch"]
Pair = tuple[Annotated[int, Field(ge=0, le=16384)], Annotated[int, Field(ge=0, le=16384)]]
Side = Annotated[int, Field(ge=8, le=8192, multiple_of=8)]
Prompt = Annotated[str, Field(max_length=LONGEST_PROMPT, pattern=r"^[^\x00]*$")]
Room = Annotated[int, Field(ge=0, le=4096)]
EMBEDDING = re.compile(r"<embedding:([^<>:]+)>")
"""A learnt word in a prompt, by the name of its embedding."""

MASKED_FIELDS = (
    "mask_invert", "mask_grow", "mask_blur", "crop", "task", "fill", "match_colours"
)  # fmt: skip


def count_steps(steps: int, strength: float, mode: Literal["exact", "truncate"]) -> int:
    """Count the sampler steps that run.

    Args:
        steps: the number that the request asks for.
        strength: 0 to 1; 0 runs no step.
        mode: "exact" runs `steps`; "truncate" runs int(steps × strength), computed in floating
            point as in diffusers: 100 × 0.29 is 28.
    """
    if mode == "truncate":
        return int(steps * strength)
    return steps if strength > 0 else 0


class Picture(BaseModel):
    """A picture by content: the bytes of an encoded file (PNG, JPEG, WebP …), not yet decoded.

    Two pictures are equal when their bytes are. As JSON the bytes are base64.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64"
    )

    data: bytes = Field(repr=False)

    @cached_property
    def sha256(self) -> str:
        """The hex digest of the bytes: the picture's name in caches and metadata."""
        return hashlib.sha256(self.data).hexdigest()


class _Value(BaseModel):
    """Frozen, strict, and wrong in our own words."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        ser_json_bytes="base64",
        val_json_bytes="base64",
    )

    @classmethod
    def _canonical(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Fill in what follows from other fields and spell names our way."""
        return data

    def _check(self) -> None:
        """Raise RequestError where fields contradict each other."""

    @model_validator(mode="wrap")
    @classmethod
    def _checked(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(data, dict):
            data = cls._canonical(data)
        try:
            value = handler(data)
        except ValidationError as error:
            raise _plain(error, cls) from None
        value._check()
        return value


class Control(_Value):
    """A hint that steers the structure of the result, through a control net.

    Attributes:
        kind: of hint: see `names.HINTS`.
        net: the control net, by name, folder or file; by default the one called as the kind is.
        image: a picture that the hint is made from; by default the request's image.
        hint: the finished hint instead. Either is of the image's size, or of the result's aspect.
        estimator: the network that sees in the picture what the hint shows (depth, normals, what is
            where), by name, folder or hub id; by default the one that is published for the kind.
            Normals are made of a picture of depth where none is given.
        options: of the function that makes the hint, such as canny's `low` and `high`.
        scale: how strongly it steers, 0 (not at all, and the net is not run) to 2.
        start: where it begins to act, as a fraction of the denoising range: 0 is pure noise …
        end: where it stops; 1 is clean. It means the same at every strength.
        weighting: see `names.Weighting`.
        mask: where it acts, white, and where not, black. Of the same size as the hint.
    """

    kind: str
    net: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    image: Picture | None = None
    hint: Picture | None = None
    estimator: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    options: dict[str, float] = Field(default_factory=dict)
    scale: float = Field(default=1.0, ge=0, le=2)
    start: float = Field(default=0.0, ge=0, le=1)
    end: float = Field(default=1.0, ge=0, le=1)
    weighting: Weighting = "balanced"
    mask: Picture | None = None

    @property
    def acts(self) -> bool:
        """Whether it does anything at all."""
        return self.scale > 0 and self.start < self.end

    def _check(self) -> None:
        if self.kind not in HINTS:
            raise RequestError("kind", f"unknown hint {shown(self.kind)}.{near(self.kind, HINTS)}")
        if self.image and self.hint:
            raise RequestError("hint", "contradicts image; give one of the two.")
        if self.hint and self.options:
            raise RequestError("options", "mean nothing with a finished hint; leave them out.")
        if self.hint and self.estimator:
            raise RequestError("estimator", "means nothing with a finished hint; leave it out.")
        if self.estimator and HINTS[self.kind].sight is None:
            raise RequestError(
                "estimator", f"means nothing for {self.kind} hints, which are made without."
            )
        if self.start > self.end:
            raise RequestError("start", f"{self.start} is behind the end, {self.end}; swap them.")


class Lora(_Value):
    """A low-rank change to the model.

    Attributes:
        name: in the catalogue, and nowhere else.
        scale: of its changes to the UNet, -10 to 10: 0 is without it, negative against it.
        text_scale: of those to the text encoders; by default the same.
        blocks: factors for parts of the UNet, by the start of their modules' names, such as
            "up_blocks.0".
    """

    name: Annotated[str, Field(min_length=1, max_length=100)]
    scale: float = Field(default=1.0, ge=-10, le=10)
    text_scale: float | None = Field(default=None, ge=-10, le=10)
    blocks: dict[str, Annotated[float, Field(ge=-10, le=10)]] = Field(default_factory=dict)


class Request(_Value):
    r"""One picture-making request, independent of any model, device or file.

    With `image` it is image to image, without it text to image. Frozen; unknown fields, values out
    of range, not finite, of the wrong type or inconsistent raise `RequestError`, which names the
    field, the value and what is allowed. Limits that depend on the checkpoint (the sizes it can
    draw) are checked when the request is planned for a model.

    Attributes:
        prompt: what to draw. A1111 weights: `(word:1.2)`, `((word))`, `[word]`, `\(`, `BREAK`;
            `<lora:name:0.8>` goes to `loras`.
        prompt_2: for the second text encoder; by default the same prompt.
        negative_prompt: what to steer away from; needs guidance.
        negative_prompt_2: for the second text encoder; by default the same negative prompt.
        image: the picture to repaint.
        strength: how much of the picture is repainted, 0 (nothing: it is only brought to size) to 1
            (everything: pure noise). Default 0.6, with a mask that of the task. Only with `image`.
        mask: what of the image is repainted: white is, black is kept to the bit, grey gets its
            share of the strength (arXiv 2306.00950). Where it has transparency, that counts:
            transparent is repainted. Of the image's size.
        mask_from: in place of `mask`, a shape or a colour in words: see `masks.draw`.
        mask_invert: swap what is repainted and what is kept.
        mask_grow: move the mask's edge outwards by so many pixels (inwards if negative).
        mask_blur: then soften it over so many pixels to either side.
        extend: pixels of new room at the (left, top, right, bottom) of the image, to be painted.
        task: what the mask is for: "retouch", "replace" (the default), "remove" or "extend" (the
            default with `extend`); it gives `strength` and `fill` their defaults: `names.TASKS`.
        fill: what is inside the mask before painting: "original", "surroundings" (blurred into
            it), "flat" (their mean colour) or "noise" (of the latents).
        crop: paint the masked region alone, enlarged to the native size: "auto" where it is small,
            "off", or with so many pixels of context around it.
        match_colours: shift what was painted to the colours of what is kept around it.
        width: of the result in pixels, a multiple of 8. By default from `size`.
        height: likewise.
        size: "native" gives the picture's aspect at the model's native area, "keep" the picture's
            own size to the nearest multiple of 8 (and is refused without `image`). With a mask
            "keep" is the default, and exact.
        fit: where the aspects differ: "cover" crops, "contain" pads, "stretch" distorts. Only
            with `image`.
        num_inference_steps: sampler steps, 1 to 1000.
        steps: "exact" runs that many steps whatever the strength; "truncate" runs
            int(steps × strength) of them, as diffusers and Replicate do.
        guidance_scale: classifier-free guidance (arXiv 2207.12598): 0 or 1 is off, up to 50.
        guidance_rescale: 0 to 1, arXiv 2305.08891 section 3.4.
        guidance_interval: the part of the denoising range in which guidance acts, as fractions
            from 0 (pure noise) to 1 (clean), after arXiv 2404.07724.
        sampler: see `names.SAMPLERS`; A1111's and Replicate's names are understood.
        schedule: see `names.SCHEDULES`.
        seed: of the first picture; picture i has seed + i. Drawn at random when not given.
        num_images: pictures to make, 1 to 64.
        refiner: the model of a second stage: a name, as for `load`.
        refine: how the second stage goes on: "ensemble" (the default with a refiner) takes over
            the last, least noisy steps of the same schedule; "sequential" (the default with
            `upscale`) repaints the finished picture, without a refiner by the same model.
        high_noise_frac: where an ensemble's second stage takes over: the part of the denoising
            range, by noise level, that is the first one's, 0 to 1. Default 0.8.
        refine_strength: of a sequential second stage, above 0 to 1. Default 0.3.
        refine_steps: its steps; by default `num_inference_steps`.
        upscale: by how much the second stage's sides are longer, 1 to 4.
        upscale_in: what is resampled (Lanczos) for that: "pixels", or "latents", which is faster
            and softer.
        loras: low-rank changes to the model, any number at once, each by name once.
        lora_lenient: do without the keys of a LoRA that belong nowhere, and say which they are.
        controls: hints that steer the structure, any number at once.
        aesthetic_score: that a refiner is told the picture has (arXiv 2307.01952's scale, 1 to 10).
        negative_aesthetic_score: the same for the unconditional row.
        clip_skip: how many of the text encoders' layers to skip beyond the penultimate one, 0 to
            11 (A1111's "Clip skip: 2" is 0 here).
        original_size: (height, width) that the network is told the picture was cropped from
            (arXiv 2307.01952 section 2.2); by default that of the result.
        crops_coords_top_left: (top, left) of that crop, by default (0, 0).
        target_size: (height, width) that it is told it draws, by default that of the result.
        negative_original_size: the same for the unconditional row; by default as above.
        negative_crops_coords_top_left: likewise.
        negative_target_size: likewise.
    """

    prompt: Prompt = ""
    prompt_2: Prompt | None = None
    negative_prompt: Prompt = ""
    negative_prompt_2: Prompt | None = None

    image: Picture | None = None
    strength: float | None = Field(default=None, ge=0, le=1)
    width: Side | None = None
    height: Side | None = None
    size: Literal["native", "keep"] = "native"
    fit: Fit | None = None

    mask: Picture | None = None
    mask_from: Annotated[str, Field(max_length=10_000)] | None = None
    mask_invert: bool = False
    mask_grow: int = Field(default=0, ge=-512, le=512)
    mask_blur: int = Field(default=0, ge=0, le=512)
    extend: tuple[Room, Room, Room, Room] = (0, 0, 0, 0)
    task: Task | None = None
    fill: Fill | None = None
    crop: Literal["auto", "off"] | Annotated[int, Field(ge=0, le=4096)] = "auto"
    match_colours: bool = True

    num_inference_steps: int = Field(default=30, ge=1, le=1000)
    steps: Literal["exact", "truncate"] = "exact"
    guidance_scale: float = Field(default=5.0, ge=0, le=50)
    guidance_rescale: float = Field(default=0.0, ge=0, le=1)
    guidance_interval: tuple[
        Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]
    ] = (0.0, 1.0)
    sampler: str = "dpmpp_2m"
    schedule: str = "karras"
    seed: int = Field(default_factory=lambda: secrets.randbits(32), ge=0, le=LARGEST_SEED)
    num_images: int = Field(default=1, ge=1, le=64)

    refiner: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    refine: Literal["ensemble", "sequential"] | None = None
    high_noise_frac: float = Field(default=0.8, ge=0, le=1)
    refine_strength: float = Field(default=0.3, gt=0, le=1)
    refine_steps: int | None = Field(default=None, ge=1, le=1000)
    upscale: float = Field(default=1.0, ge=1, le=4)
    upscale_in: Space = "pixels"
    aesthetic_score: float = Field(default=6.0, ge=1, le=10)
    negative_aesthetic_score: float = Field(default=2.5, ge=1, le=10)

    loras: tuple[Lora, ...] = Field(default=(), max_length=32)
    lora_lenient: bool = False
    controls: tuple[Control, ...] = Field(default=(), max_length=MOST_CONTROLS)

    clip_skip: int = Field(default=0, ge=0, le=11)
    original_size: Pair | None = None
    crops_coords_top_left: Pair = (0, 0)
    target_size: Pair | None = None
    negative_original_size: Pair | None = None
    negative_crops_coords_top_left: Pair | None = None
    negative_target_size: Pair | None = None

    @property
    def masked(self) -> bool:
        """Whether only a part of the result is painted."""
        return bool(self.mask or self.mask_from or any(self.extend))

    @property
    def effective_strength(self) -> float:
        """`strength`; 1 for text to image, which has none and starts from pure noise."""
        return 1.0 if self.strength is None else self.strength

    @property
    def steps_to_run(self) -> int:
        """Sampler steps that the first stage runs for each picture; 0 at strength 0."""
        return count_steps(self.num_inference_steps, self.effective_strength, self.steps)

    @property
    def refine_steps_to_run(self) -> int:
        """Sampler steps that a sequential second stage runs for each picture."""
        if self.refine != "sequential":
            return 0
        steps = self.refine_steps or self.num_inference_steps
        return count_steps(steps, self.refine_strength, self.steps)

    @property
    def sized(self) -> bool:
        """Whether it says what size the result has; else a masked one keeps its picture's."""
        return bool(self.size == "native" or self.width or self.height)

    @property
    def staged(self) -> bool:
        """Whether a second stage follows."""
        return self.refine is not None

    @property
    def embeddings(self) -> dict[str, str]:
        """The embeddings that the prompts use, in order, and the field that first names each."""
        found: dict[str, str] = {}
        for field in ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2"):
            for name in EMBEDDING.findall(getattr(self, field) or ""):
                found.setdefault(name, field)
        return found

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance asks for a second row anywhere."""
        return self.guidance_scale > 1 and self.guidance_interval[0] < self.guidance_interval[1]

    @classmethod
    def _canonical(cls, data: dict[str, Any]) -> dict[str, Any]:
        return _canonical(data)

    def _check(self) -> None:
        _check_consistency(self)


def _canonical(data: dict[str, Any]) -> dict[str, Any]:
    """Fill in what follows from other fields and spell names our way."""
    # JSON has no tuples, so what was stored as JSON comes back with lists.
    data = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    prompt = data.get("prompt")
    if isinstance(prompt, str) and len(prompt) <= LONGEST_PROMPT:
        data["prompt"], tagged = _untagged(prompt)
        if tagged and isinstance(data.get("loras", ()), tuple):
            data["loras"] = (*data.get("loras", ()), *tagged)
    for field, part in (("controls", Control), ("loras", Lora)):
        if isinstance(data.get(field), tuple):
            values = enumerate(data[field])
            data[field] = tuple(_part(part, f"{field}.{i}", value) for i, value in values)
    if data.get("image") is not None:
        extend = data.get("extend")
        extended = isinstance(extend, tuple) and any(extend)
        if data.get("mask") or data.get("mask_from") or extended:
            if data.get("task") is None:
                data["task"] = "replace" if data.get("mask") or data.get("mask_from") else "extend"
            if data["task"] in tuple(TASKS):  # what is no task may be of any type
                repaint = TASKS[data["task"]]
                for field in ("strength", "fill"):
                    if data.get(field) is None:
                        data[field] = getattr(repaint, field)
            if data.get("width") is None and data.get("height") is None:
                data.setdefault("size", "keep")
        if data.get("strength") is None:
            data["strength"] = DEFAULT_STRENGTH
        if data.get("fit") is None:
            data["fit"] = "cover"
    if data.get("refine") is None and (data.get("refiner") or data.get("upscale", 1) != 1):
        data["refine"] = "ensemble" if data.get("upscale", 1) == 1 else "sequential"
    if isinstance(data.get("schedule"), str):
        data["schedule"] = schedule_name(data["schedule"])
    if isinstance(data.get("sampler"), str):
        data["sampler"], implied = sampler_name(data["sampler"])
        if implied and data.setdefault("schedule", implied) != implied:
            raise RequestError(
                "schedule",
                f"{data['schedule']!r} contradicts the sampler, whose name asks for {implied!r}; "
                "give one of the two.",
            )
    return data


_TAG = re.compile(r"<lora:([^:<>]*)((?::[^:<>]*)*)>")


def _untagged(prompt: str) -> tuple[str, list[dict[str, Any]]]:
    """A prompt without its tags, and the LoRAs that they name.

    A1111's: `<lora:name:scale>`, or `<lora:name:text scale:UNet scale>`.
    """
    found: list[dict[str, Any]] = []
    for tag in _TAG.finditer(prompt):
        try:
            scales = [float(number) for number in tag[2].split(":")[1:]]
        except ValueError:
            raise RequestError("prompt", f"{shown(tag[0])} is not like <lora:name:0.8>.") from None
        if len(scales) > 2:
            raise RequestError("prompt", f"{shown(tag[0])} has more than two scales.")
        lora: dict[str, Any] = {"name": tag[1].strip()}
        if scales:
            lora["scale"] = scales[-1]
        if len(scales) == 2:
            lora["text_scale"] = scales[0]
        found.append(lora)
    if not found:
        return prompt, found
    return re.sub(r"\s{2,}", " ", _TAG.sub("", prompt)).strip(), found


def _part(kind: type[_Value], place: str, value: Any) -> Any:
    """A part of a request from its fields; what is wrong with it names its place."""
    try:
        return kind.model_validate(value) if isinstance(value, dict) else value
    except RequestError as error:
        raise RequestError(f"{place}.{error.field}", error.message) from None


def _check_consistency(request: Request) -> None:
    if request.image is None:
        for field in ("strength", "fit"):
            if (value := getattr(request, field)) is not None:
                raise RequestError(
                    field, f"{value!r} means nothing without an image; leave it out."
                )
        if request.size == "keep":
            raise RequestError("size", "'keep' needs an image whose size to keep.")
    _check_mask(request)
    _check_stages(request)
    for index, control in enumerate(request.controls):
        if not (control.image or control.hint or request.image):
            raise RequestError(
                f"controls.{index}",
                f"there is no picture to make the {control.kind} hint from; give one.",
            )
    if request.lora_lenient and not request.loras:
        raise RequestError("lora_lenient", "means nothing without a LoRA; leave it out.")
    names = [lora.name for lora in request.loras]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RequestError("loras", f"{twice[0]!r} is given {names.count(twice[0])} times; once.")
    if request.size == "keep" and (request.width or request.height):
        raise RequestError("size", "'keep' contradicts width and height; give one or the other.")
    if 0 < request.guidance_scale < 1:
        raise RequestError(
            "guidance_scale",
            f"{request.guidance_scale} is between 0 and 1, which guides backwards; "
            "give 0 or 1 for none, or 1 to 50.",
        )
    start, end = request.guidance_interval
    if start > end:
        raise RequestError("guidance_interval", f"({start}, {end}) ends before it starts.")
    if request.seed + request.num_images - 1 > LARGEST_SEED:
        raise RequestError(
            "seed", f"{request.seed} + num_images - 1 is beyond the largest seed, {LARGEST_SEED}."
        )


def _check_mask(request: Request) -> None:
    if request.masked and request.image is None:
        field = next(f for f in ("mask", "mask_from", "extend") if getattr(request, f))
        raise RequestError(field, "there is no image to repaint a part of; give it too.")
    if request.mask and request.mask_from:
        raise RequestError("mask_from", "contradicts mask; give one of the two.")
    if not request.masked:
        for field in MASKED_FIELDS:
            value = getattr(request, field)
            if value != Request.model_fields[field].default:
                raise RequestError(
                    field, f"{shown(value)} means nothing without a mask; leave it out."
                )


def _check_stages(request: Request) -> None:
    if request.refine == "ensemble":
        if not request.refiner:
            raise RequestError("refine", "'ensemble' needs a refiner; give one.")
        if request.upscale != 1:
            raise RequestError(
                "upscale",
                f"{request.upscale} contradicts refine='ensemble', whose stages share one latent; "
                "give refine='sequential'.",
            )
    others = {
        None: ("high_noise_frac", "refine_strength", "refine_steps"),
        "ensemble": ("refine_strength", "refine_steps"),
        "sequential": ("high_noise_frac",),
    }[request.refine]
    for field in others:
        if (value := getattr(request, field)) != Request.model_fields[field].default:
            kind = f"refine={request.refine!r}" if request.refine else "a second stage"
            word = "with" if request.refine else "without"
            raise RequestError(field, f"{value!r} means nothing {word} {kind}; leave it out.")
    if request.upscale == 1 and request.upscale_in != "pixels":
        raise RequestError("upscale_in", "means nothing without upscale; leave it out.")
    if not request.refiner:
        for field in ("aesthetic_score", "negative_aesthetic_score"):
            if (value := getattr(request, field)) != Request.model_fields[field].default:
                raise RequestError(field, f"{value!r} means nothing without a refiner.")


def _plain(error: ValidationError, model: type[BaseModel]) -> RequestError:
    """Our error from pydantic's: every problem, the first one's field as the field."""
    wrong = error.errors(include_url=False)
    problems = [(_field(e["loc"]), _sentence(e, model)) for e in wrong[:MOST_WRONG]]
    more = [f"and {len(wrong) - MOST_WRONG} more"] if len(wrong) > MOST_WRONG else []
    field, message = problems[0]
    return RequestError(field, "; ".join([message, *(f"{f}: {m}" for f, m in problems[1:]), *more]))


def _field(location: tuple[int | str, ...]) -> str:
    # After the name come places in tuples, and names of a union's members, which say nothing.
    named = [str(p)[:LONGEST_NAME] for i, p in enumerate(location) if i == 0 or isinstance(p, int)]
    return ".".join(named) or "request"


def _sentence(problem: Any, model: type[BaseModel]) -> str:
    field, value = str(next(iter(problem["loc"]), "")), problem["input"]
    if problem["type"] == "extra_forbidden":
        return f"no such field.{near(field, model.model_fields)}"
    if problem["type"] == "finite_number":
        return f"{shown(value)} is not finite; {_allowed(model, field)}"
    if problem["type"] in {"greater_than_equal", "less_than_equal"}:
        return f"{shown(value)} is out of range; {_allowed(model, field)}"
    if problem["type"] == "string_pattern_mismatch":  # of prompts alone
        return f"{shown(value)} has NUL in it, which no text has; leave it out"
    if problem["type"] == "multiple_of":
        step = problem["ctx"]["multiple_of"]
        below = value // step * step
        return (
            f"{shown(value)} is not a multiple of {step}; the nearest are {below} and "
            f"{below + step}"
        )
    return f"{shown(value)}: {problem['msg']}"


@cache
def _allowed(model: type[BaseModel], field: str) -> str:
    """The bounds of a field, read from its schema, as words."""
    schema = model.model_json_schema()["properties"].get(field, {})
    for part in (schema, *schema.get("anyOf", ()), *schema.get("prefixItems", ())):
        for inner in (part, *part.get("prefixItems", ())):
            if "minimum" in inner:
                return f"allowed is {inner['minimum']} to {inner['maximum']}"
    return "see the field's description"
