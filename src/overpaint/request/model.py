"""A request: one frozen, validated value that can be stored."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack, cast

from overpaint.errors import RequestError, quote_value
from overpaint.picture import Picture
from overpaint.registry import TASKS, resolve_sampler, resolve_schedule
from overpaint.request.errors import WHOLE_VALUE
from overpaint.request.fields import (
    BREAK_PATTERN,
    DEFAULT_STRENGTH,
    EMBEDDING_PATTERN,
    MAX_EMBEDDINGS,
    MAX_PROMPT_CHARS,
    MAX_PROMPT_CHUNKS,
    MAX_SEED,
    RequestFields,
    StepsMode,
    resolve_field_aliases,
)
from overpaint.request.lora_tags import take_lora_tags
from overpaint.request.options import RequestArguments
from overpaint.request.parts import Control, Lora, StrictModel

MASKED_FIELDS = (
    *("mask_invert", "mask_grow", "mask_blur", "crop", "task", "fill", "langevin_steps"),
    "match_colors",
)  # fmt: skip
"""Fields that have an effect only with a mask."""


def count_steps(steps: int, strength: float, mode: StepsMode) -> int:
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


class Request(RequestFields):
    """A request for one or more pictures, independent of any model, device or file.

    With `image` it repaints that picture, without it the prompt alone makes one. Unknown fields,
    wrong types, values out of range and contradictions raise `RequestError`. The planner checks
    limits that depend on the model, such as its sizes.
    """

    @property
    def masked(self) -> bool:
        """True if only a part of the result is painted."""
        return bool(self.mask or self.mask_from or any(self.extend))

    @property
    def sized(self) -> bool:
        """True if the size of the result follows the model or the request, not the image."""
        return bool(self.size == "native" or self.width or self.height)

    @property
    def staged(self) -> bool:
        """True if a second stage follows."""
        return self.refine is not None

    @property
    def guided(self) -> bool:
        """True if guidance needs the unconditional row at any step."""
        return self.guidance_scale > 1 and self.guidance_interval[0] < self.guidance_interval[1]

    @property
    def picture_seeds(self) -> tuple[int, ...]:
        """The seed of each picture; variations of one picture share its seed."""
        step = 0 if self.subseed_strength > 0 else 1
        return tuple(self.seed + step * i for i in range(self.num_images))

    @property
    def picture_subseeds(self) -> tuple[int, ...]:
        """The subseed of each picture; it has an effect only with `subseed_strength`."""
        return tuple((self.subseed or 0) + i for i in range(self.num_images))

    def count_second_stage_pixels(self, pixels: float) -> float:
        """Return the pixels of a sequential second stage, given those of the first one."""
        if self.upscale_to is None:
            return pixels * self.upscale**2
        return self.upscale_to[0] * self.upscale_to[1]

    @property
    def effective_strength(self) -> float:
        """`strength`, or 1 without an image, because painting starts from pure noise then."""
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

    def mark_set(self, fields: Iterable[str]) -> "Request":
        """Return the request with the same values, of which only these fields count as set."""
        return Request.model_construct(set(fields), **dict(self))

    def fill_unset(self, fields: Mapping[str, Any]) -> "Request":
        """Return the request with these fields, but for those that it sets."""
        return self.model_copy(
            update={k: v for k, v in fields.items() if k not in self.model_fields_set}
        )

    @property
    def prompts(self) -> dict[str, str]:
        """The prompts that are given, by field."""
        fields = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")
        return {field: text for field in fields if (text := getattr(self, field))}

    @property
    def embeddings(self) -> dict[str, str]:
        """The embeddings of the prompts, in order, and the first field that names each."""
        found: dict[str, str] = {}
        for field, text in self.prompts.items():
            for name in EMBEDDING_PATTERN.findall(text):
                found.setdefault(name, field)
        return found

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures of the request."""
        found = [self.image, self.mask]
        for control in self.controls:
            found += [control.image, control.hint, control.mask]
        return tuple(picture for picture in found if picture)

    if TYPE_CHECKING:

        def __init__(self, **fields: Unpack[RequestArguments]) -> None: ...

    @classmethod
    def read_arguments(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the constructor's arguments as values of the fields.

        A LoRA may be its name or path alone, and a LoRA or control the dict of its arguments.

        Raises:
            PictureError: a picture cannot be read.
            RequestError: a LoRA or control has an invalid field.
        """
        controls = fields.get("controls")
        if isinstance(controls, list | tuple):
            items = enumerate(cast("Sequence[Any]", controls))
            fields["controls"] = tuple(_read_control(f"controls.{i}", own) for i, own in items)
        read = super().read_arguments(fields)
        if isinstance(loras := read.get("loras"), tuple):
            names = cast("tuple[Any, ...]", loras)
            read["loras"] = tuple({"name": v} if isinstance(v, str) else v for v in names)
        return read

    @classmethod
    def _canonical(cls, data: dict[str, Any]) -> dict[str, Any]:
        # JSON has no tuples, so a stored request comes back with lists.
        data = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        data = resolve_field_aliases(data)
        _move_lora_tags(data)
        for field, part in (("controls", Control), ("loras", Lora)):
            if isinstance(data.get(field), tuple):
                values = enumerate(data[field])
                data[field] = tuple(_read_part(part, f"{field}.{i}", v) for i, v in values)
        _fill_image_defaults(data)
        _draw_subseed(data)
        larger = data.get("upscale", 1) != 1 or data.get("upscale_to") is not None
        if data.get("refine") is None and (data.get("refiner") or larger):
            data["refine"] = "sequential" if larger else "ensemble"
        _resolve_names(data)
        return data

    def _check(self) -> None:
        _check_consistency(self)


def _fill_image_defaults(data: dict[str, Any]) -> None:
    """Set the fields that follow from an image and a mask."""
    if data.get("image") is None:
        return
    has_mask = bool(data.get("mask") or data.get("mask_from"))
    extend = data.get("extend")
    if has_mask or (isinstance(extend, tuple) and any(extend)):
        if data.get("task") is None:
            data["task"] = "replace" if has_mask else "extend"
        if data["task"] in tuple(TASKS):  # A wrong value may be unhashable.
            repaint = TASKS[data["task"]]
            for field in ("strength", "fill"):
                if data.get(field) is None:
                    data[field] = getattr(repaint, field)
        if data.get("width") is None and data.get("height") is None:
            data.setdefault("size", "keep")
    for field, default in (("strength", DEFAULT_STRENGTH), ("fit", "cover")):
        if data.get(field) is None:
            data[field] = default


def _draw_subseed(data: dict[str, Any]) -> None:
    """Draw a random subseed if it has an effect."""
    strength = data.get("subseed_strength")
    if data.get("subseed") is None and isinstance(strength, int | float) and strength > 0:
        data["subseed"] = secrets.randbits(32)


def _resolve_names(data: dict[str, Any]) -> None:
    """Replace the names of the sampler and the schedule by their canonical spelling."""
    if isinstance(data.get("schedule"), str):
        data["schedule"] = resolve_schedule(data["schedule"])
    if isinstance(data.get("sampler"), str):
        data["sampler"], implied = resolve_sampler(data["sampler"])
        if implied and data.setdefault("schedule", implied) != implied:
            raise RequestError(
                "schedule",
                f"{data['schedule']!r} contradicts the name of the sampler, which asks for "
                f"{implied!r}. Give one of the two.",
            )


def _move_lora_tags(data: dict[str, Any]) -> None:
    """Move the LoRA tags of the prompt to `loras`, after those that `loras` has."""
    prompt = data.get("prompt")
    if not isinstance(prompt, str) or len(prompt) > MAX_PROMPT_CHARS:
        return
    data["prompt"], loras = take_lora_tags(prompt)
    if loras and isinstance(data.get("loras", ()), tuple):
        data["loras"] = (*data.get("loras", ()), *loras)


def _read_control(place: str, value: Any) -> Any:
    """Return a control from the dict of the arguments that it has in a constructor."""
    if not isinstance(value, dict):
        return value
    return _read_part(Control, place, Control.read_arguments(cast("dict[str, Any]", value)))


def _read_part(kind: type[StrictModel], place: str, value: Any) -> Any:
    """Return a part of a request from its fields; errors name the place of the part."""
    try:
        return value if isinstance(value, kind) else kind.model_validate(value)
    except RequestError as error:
        field = place if error.field == WHOLE_VALUE else f"{place}.{error.field}"
        raise RequestError(field, error.message) from None


def _check_consistency(request: Request) -> None:
    if request.image is None:
        for field in ("strength", "fit"):
            if (value := getattr(request, field)) is not None:
                raise RequestError(
                    field, f"{value!r} has no effect without an image. Leave it out."
                )
        if request.size == "keep":
            raise RequestError("size", "'keep' needs an image. Give one, or a width and a height.")
    _check_prompts(request)
    _check_mask(request)
    _check_stages(request)
    for index, control in enumerate(request.controls):
        if not (control.image or control.hint or request.image):
            raise RequestError(
                f"controls.{index}",
                f"The {control.kind} control image needs a picture. Give the control an image or a "
                "hint, or give the request an image.",
            )
    if request.lora_lenient and not request.loras:
        raise RequestError("lora_lenient", "It has no effect without a LoRA. Leave it out.")
    if request.size == "keep" and (request.width or request.height):
        raise RequestError("size", "'keep' contradicts width and height. Give one or the other.")
    if 0 < request.guidance_scale < 1:
        raise RequestError(
            "guidance_scale",
            f"{request.guidance_scale} is between 0 and 1 and would guide away from the prompt. "
            "Give 0 or 1 to turn guidance off, or more than 1, up to 50.",
        )
    start, end = request.guidance_interval
    if start > end:
        raise RequestError(
            "guidance_interval", f"({start}, {end}) ends before it starts. Swap the numbers."
        )
    for field, seeds in {
        "seed": request.picture_seeds,
        "subseed": request.picture_subseeds if request.subseed_strength else (0,),
    }.items():
        if seeds[-1] > MAX_SEED:
            raise RequestError(
                field,
                f"{seeds[0]} + num_images - 1 exceeds the largest seed, {MAX_SEED}. Give a smaller "
                "seed.",
            )


def _check_prompts(request: Request) -> None:
    for field, text in request.prompts.items():
        breaks = len(BREAK_PATTERN.findall(text))
        if breaks > MAX_PROMPT_CHUNKS:
            raise RequestError(
                field,
                f"It has {breaks:,} BREAKs and may have {MAX_PROMPT_CHUNKS}. Remove some.",
            )
    if len(embeddings := request.embeddings) > MAX_EMBEDDINGS:
        raise RequestError(
            list(embeddings.values())[MAX_EMBEDDINGS],
            f"The prompts name {len(embeddings):,} embeddings and may name {MAX_EMBEDDINGS}. "
            "Remove some.",
        )


def _check_mask(request: Request) -> None:
    if request.match_image_colors:
        if request.masked:
            raise RequestError(
                "match_image_colors", "It cannot be used with a mask. Use match_colors."
            )
        if request.image is None:
            raise RequestError("match_image_colors", "It needs an image. Leave it out.")
    if request.masked and request.image is None:
        field = next(f for f in ("mask", "mask_from", "extend") if getattr(request, f))
        raise RequestError(field, "It needs the image to repaint. Give an image too.")
    if request.mask and request.mask_from:
        raise RequestError("mask_from", "It contradicts mask. Give one of the two.")
    if not request.masked:
        for field in MASKED_FIELDS:
            value = getattr(request, field)
            if value != Request.model_fields[field].default:
                raise RequestError(
                    field, f"{quote_value(value)} has no effect without a mask. Leave it out."
                )


def _check_upscale_to(request: Request) -> None:
    field = "upscale_to"
    if request.image is not None:
        raise RequestError(field, "It cannot be used with an image. Use upscale.")
    if request.upscale != 1:
        raise RequestError(field, "It contradicts upscale. Give one of the two.")
    if request.refine != "sequential":
        raise RequestError(field, f"It contradicts refine={request.refine!r}. Use 'sequential'.")


def _check_stages(request: Request) -> None:
    if request.refine == "ensemble":
        if not request.refiner:
            raise RequestError("refine", "'ensemble' needs a refiner. Give one.")
        if request.upscale != 1:
            raise RequestError(
                "upscale",
                f"{request.upscale} contradicts refine='ensemble', whose stages share one latent. "
                "Give refine='sequential'.",
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
            raise RequestError(field, f"{value!r} has no effect {word} {kind}. Leave it out.")
    if request.upscale_to is not None:
        _check_upscale_to(request)
    elif request.upscale == 1 and request.upscale_in != "pixels":
        raise RequestError("upscale_in", "It has no effect without upscale. Leave it out.")
    if not request.refiner:
        for field in ("aesthetic_score", "negative_aesthetic_score"):
            if (value := getattr(request, field)) != Request.model_fields[field].default:
                raise RequestError(
                    field, f"{value!r} has no effect without a refiner. Leave it out."
                )
