"""The options that are fields of a `Request`: one table for every command that paints.

Only what is given on the command line becomes a field, so that defaults stay in one place and
`--like` can tell what was asked for.
"""

import inspect
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from overpaint.errors import RequestError
from overpaint.imaging import codec
from overpaint.picture import Picture
from overpaint.request import Request
from overpaint.request_fields import DEFAULT_STRENGTH


@dataclass(frozen=True)
class Setting:
    """An option and the field that it fills.

    Attributes:
        field: of `Request`.
        flags: of the command line.
        type: of its value there.
        help: one line.
        default: shown in the help; by default the field's own.
        parse: from the value on the command line to fields; by default the field itself.
        old_flags: a former spelling of the flags, which is accepted and not shown.
    """

    field: str
    flags: tuple[str, ...]
    type: Any
    help: str
    default: str | None = None
    parse: Callable[[Any], dict[str, Any]] | None = None
    old_flags: str | None = None

    def fields(self, value: Any) -> dict[str, Any]:
        """The fields that a value on the command line stands for."""
        return self.parse(value) if self.parse else {self.field: value}

    def parameters(self) -> Iterator[inspect.Parameter]:
        """Yield the option as a keyword of a command, and its hidden alias; None if not given."""
        default = self.default or str(Request.model_fields[self.field].default)
        shown = default if default not in {"None", "", "PydanticUndefined"} else False
        options = {self.field: typer.Option(*self.flags, help=self.help, show_default=shown)}
        if self.old_flags:
            options[f"{self.field}_alias"] = typer.Option(self.old_flags, hidden=True)
        for name, option in options.items():
            yield inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[self.type | None, option],
            )


def home() -> str | None:
    """Where what was added is kept: OVERPAINT_HOME, or None for the default."""
    return os.environ.get("OVERPAINT_HOME")


def numbers(field: str, text: str) -> tuple[float, ...]:
    """Numbers separated by commas.

    Raises:
        RequestError: it is something else.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise RequestError(field, f"{text!r} is not a list of numbers like 0.2,0.8.") from None


def _interval(text: str) -> dict[str, Any]:
    return {"guidance_interval": numbers("guidance_interval", text)}


def _size(text: str) -> dict[str, Any]:
    if text in {"native", "keep"}:
        return {"size": text, "width": None, "height": None}
    if size := re.fullmatch(r"(\d{1,9})[xX×](\d{1,9})", text):
        return {"size": "native", "width": int(size[1]), "height": int(size[2])}
    raise RequestError("size", f"{text!r} is none of: WIDTHxHEIGHT, native, keep.")


def _truncate(truncate: bool) -> dict[str, Any]:
    return {"steps": "truncate" if truncate else "exact"}


def _mask(path: Path) -> dict[str, Any]:
    return {"mask": codec.read_picture(path)}


def _extend(text: str) -> dict[str, Any]:
    sides: dict[str, int] = dict.fromkeys(("left", "top", "right", "bottom"), 0)
    for part in text.split(","):
        side = re.fullmatch(r"\s*(left|top|right|bottom)\s*=\s*(\d{1,6})\s*", part)
        if not side:
            raise RequestError("extend", f"{part!r} is not like left=256 or top=128.")
        sides[side[1]] = int(side[2])
    return {"extend": tuple(sides.values())}


_SCALE = re.compile(r"\d+(\.\d*)?|\.\d+")
_RANGE = re.compile(r"(\d*\.?\d+)-(\d*\.?\d+)")
_OPTION = re.compile(r"([a-z_]+)=(.+)")


def controls(texts: Sequence[str]) -> dict[str, Any]:
    """Controls as they are written: KIND, KIND=PICTURE or KIND@HINT, and options behind colons.

    An option is a scale (0.7), a range (0-0.8), or NAME=VALUE: net, estimator, mask, weighting, or
    one of the function that makes the hint.

    Raises:
        RequestError: something else.
    """
    return {"controls": tuple(_control(text, f"controls.{i}") for i, text in enumerate(texts))}


def _control(text: str, field: str) -> dict[str, Any]:
    start = re.match(r"([a-z]+)([=@:]|$)", text)
    if not start:
        raise RequestError(field, f"{text!r} is not like canny=PICTURE:0.7 or canny@HINT.")
    found: dict[str, Any] = {"kind": start[1], "options": {}}
    parts = text[start.end() :].split(":")
    least = 0 if start[2] in (":", "") else 1  # what comes first is the path
    while len(parts) > least and (own := _option(parts[-1], field)) is not None:
        found["options"] |= own.pop("options", {})
        found |= own
        parts.pop()
    path = ":".join(parts)
    if path and least:
        found["image" if start[2] == "=" else "hint"] = hint_source(start[1], path)
    elif path or least:
        raise RequestError(field, f"{text!r}: {path or text[-1]!r} is no scale, range or option.")
    return found


def hint_source(kind: str, path: str) -> Picture:
    """What a hint is made from: a picture, or of a pose its keypoints."""
    data = kind == "pose" and path.lower().endswith(".json")
    return codec.read_keypoints(path) if data else codec.read_picture(path)


def _option(text: str, field: str) -> dict[str, Any] | None:
    """The fields of a control that an option stands for; None where it is none."""
    if _SCALE.fullmatch(text):
        return {"scale": float(text)}
    if way := _RANGE.fullmatch(text):
        return {"start": float(way[1]), "end": float(way[2])}
    if not (named := _OPTION.fullmatch(text)):
        return {} if text == "" else None
    name, value = named.groups()
    match name:
        case "net" | "estimator" | "weighting":
            return {name: value}
        case "mask":
            return {"mask": codec.read_picture(value)}
        case _:
            return {"options": options([f"{name}={value}"], f"{field}.options")}


def loras(texts: Sequence[str]) -> dict[str, Any]:
    """LoRAs as they are written: NAME, NAME:SCALE, then text=SCALE or BLOCK=FACTOR behind colons.

    Raises:
        RequestError: something else.
    """
    return {"loras": tuple(_lora(text, f"loras.{i}") for i, text in enumerate(texts))}


def _lora(text: str, field: str) -> dict[str, Any]:
    name, *rest = text.split(":")
    found: dict[str, Any] = {"name": name}
    if rest and "=" not in rest[0]:
        (number,) = numbers(field, rest.pop(0))[:1]
        found["scale"] = number
    scales = options(rest, field)
    if "text" in scales:
        found["text_scale"] = scales.pop("text")
    return found | ({"blocks": scales} if scales else {})


def options(texts: Sequence[str], field: str = "options") -> dict[str, float]:
    """Options of a function that makes a hint, NAME=NUMBER each.

    Raises:
        RequestError: something else.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise RequestError(field, f"{text!r} is not like low=50.") from None
    return found


def _crop(text: str) -> dict[str, Any]:
    return {"crop": int(text) if re.fullmatch(r"\d{1,6}", text) else text}


SETTINGS = {
    setting.field: setting
    for setting in (
        Setting(
            "strength",
            ("--strength", "-s"),
            float,
            "How much is repainted, from 0 (nothing) to 1 (everything).",
            default=str(DEFAULT_STRENGTH),
        ),
        Setting("negative_prompt", ("--negative",), str, "What to steer away from."),
        Setting("num_inference_steps", ("--steps",), int, "Sampler steps that run."),
        Setting("guidance_scale", ("--guidance", "-g"), float, "How closely to follow the prompt."),
        Setting("seed", ("--seed",), int, "Of the first picture.", default="random"),
        Setting("num_images", ("--num-images", "-n"), int, "Pictures to make."),
        Setting(
            "size",
            ("--size",),
            str,
            "WIDTHxHEIGHT, native (the picture's aspect at the model's area), or keep (its size).",
            parse=_size,
        ),
        Setting(
            "fit",
            ("--fit",),
            str,
            "Where the aspect differs: cover crops, contain pads, stretch distorts.",
            default="cover",
        ),
        Setting(
            "mask",
            ("--mask",),
            Path,
            "A picture of the same size: white (or transparent) is repainted, black kept.",
            parse=_mask,
        ),
        Setting(
            "mask_from",
            ("--mask-from",),
            str,
            "A mask in words: box:L,T,R,B, ellipse:L,T,R,B, polygon:X,Y,…, color:#ff0000.",
        ),
        Setting("mask_invert", ("--invert",), bool, "Repaint what the mask keeps, keep the rest."),
        Setting("mask_grow", ("--grow",), int, "Pixels by which the mask grows (or shrinks)."),
        Setting("mask_blur", ("--blur",), int, "Pixels over which its edge is softened."),
        Setting(
            "extend",
            ("--extend",),
            str,
            "New room at the sides, such as left=256,top=128.",
            default="None",
            parse=_extend,
        ),
        Setting(
            "task",
            ("--task",),
            str,
            "What the mask is for: retouch, replace, remove or extend.",
            default="replace",
        ),
        Setting(
            "fill",
            ("--fill",),
            str,
            "Inside the mask before painting: original, surroundings, flat or noise.",
            default="by the task",
        ),
        Setting(
            "crop",
            ("--crop",),
            str,
            "Paint the masked region alone: auto, off, or pixels of context around it.",
            parse=_crop,
        ),
        Setting(
            "match_colors",
            ("--match-colors/--no-match-colors",),
            bool,
            "Bring what is painted to the colors around it.",
            old_flags="--match-colours/--no-match-colours",
        ),
        Setting(
            "loras",
            ("--lora",),
            list[str],
            "A LoRA of the catalogue: NAME, NAME:0.8, NAME:0.8:text=0.5:up_blocks.0=0. Any number.",
            default="None",
            parse=loras,
        ),
        Setting(
            "lora_lenient",
            ("--lora-lenient",),
            bool,
            "Do without keys of a LoRA that belong nowhere; they are named.",
        ),
        Setting(
            "controls",
            ("--control",),
            list[str],
            "A hint to follow: KIND, KIND=PICTURE or KIND@HINT, then :SCALE, :START-END, "
            ":net=NAME, :estimator=NAME, :mask=FILE, :weighting=soft. Any number.",
            default="None",
            parse=controls,
        ),
        Setting(
            "refiner",
            ("--refiner",),
            str,
            "A second model that finishes the picture.",
        ),
        Setting(
            "refine",
            ("--refine",),
            str,
            "How: ensemble (takes over the last steps) or sequential (repaints the result).",
            default="ensemble",
        ),
        Setting(
            "high_noise_frac",
            ("--high-noise-frac",),
            float,
            "Where an ensemble's refiner takes over, by noise level.",
        ),
        Setting(
            "refine_strength",
            ("--refine-strength",),
            float,
            "Of a sequential second stage.",
        ),
        Setting(
            "refine_steps",
            ("--refine-steps",),
            int,
            "Its steps.",
            default="as many as the first's",
        ),
        Setting(
            "upscale",
            ("--upscale",),
            float,
            "Paint once more, this many times larger.",
        ),
        Setting(
            "upscale_in",
            ("--upscale-in",),
            str,
            "What is enlarged for that: pixels, or latents (faster and softer).",
        ),
        Setting(
            "aesthetic_score",
            ("--aesthetic-score",),
            float,
            "That the refiner is to aim at, 1 to 10.",
        ),
        Setting(
            "negative_aesthetic_score",
            ("--negative-aesthetic-score",),
            float,
            "That it is to steer away from.",
        ),
        Setting("sampler", ("--sampler",), str, "The integrator: euler, heun, unipc …"),
        Setting("schedule", ("--schedule",), str, "The noise levels: karras, normal, beta …"),
        Setting(
            "guidance_rescale", ("--guidance-rescale",), float, "Tames strong guidance, 0 to 1."
        ),
        Setting(
            "guidance_interval",
            ("--guidance-interval",),
            str,
            "Guide only from here to there, as fractions of the way.",
            default="0,1",
            parse=_interval,
        ),
        Setting("prompt_2", ("--prompt-2",), str, "For the second text encoder alone."),
        Setting("negative_prompt_2", ("--negative-2",), str, "Likewise, to steer away from."),
        Setting("clip_skip", ("--clip-skip",), int, "Text encoder layers to skip."),
        Setting(
            "steps",
            ("--truncate-steps/--exact-steps",),
            bool,
            "Run steps × strength of the steps, as diffusers does.",
            default="exact",
            parse=_truncate,
        ),
    )
}
ON_PICTURES = (
    *("strength", "fit", "mask", "mask_from", "mask_invert", "mask_grow", "mask_blur"),
    *("extend", "task", "fill", "crop", "match_colors"),
)
"""Fields that mean nothing without a picture."""

OPTIONS = {name: setting.flags[0].split("/")[0] for name, setting in SETTINGS.items()} | {
    "width": "--size",
    "height": "--size",
}
"""What each field is called on the command line, for messages."""


def takes_settings(
    common: type, *, without: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command more options than it names.

    The command is called with its own arguments, with `common`, and with `settings`, the values
    of the table's options.

    Args:
        common: a dataclass whose fields are options of every command; its annotations are typer's.
        without: fields of the table to leave out.
    """
    offered = [setting for name, setting in SETTINGS.items() if name not in without]
    table = [parameter for setting in offered for parameter in setting.parameters()]
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=field.type,
        )
        for field in fields(common)
    ]

    def replace(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command).parameters.values())
        own = [parameter for parameter in own if parameter.name not in {"common", "settings"}]

        @wraps(command)
        def called(**values: Any) -> None:
            settings = {p.name: values.pop(p.name) for p in table}
            for name in [s.field for s in offered if s.old_flags]:
                alias = settings.pop(f"{name}_alias")
                settings[name] = alias if settings[name] is None else settings[name]
            chosen = common(**{p.name: values.pop(p.name) for p in shared})
            command(**values, common=chosen, settings=settings)

        parameters = sorted([*own, *table, *shared], key=lambda parameter: parameter.kind)
        # typer looks at both.
        vars(called)["__signature__"] = inspect.Signature(parameters)
        called.__annotations__ = {p.name: p.annotation for p in parameters}
        return called

    return replace


def given(settings: dict[str, Any]) -> dict[str, Any]:
    """The fields that were given on the command line.

    Raises:
        RequestError: a value that is no size or no interval.
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if value is not None:
            found |= SETTINGS[name].fields(value)
    return found
