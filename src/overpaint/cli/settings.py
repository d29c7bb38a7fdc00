"""The options that set fields of a `Request`: one table for every command that paints.

Only options on the command line become fields, so that defaults stay in `Request`, and `--like`
keeps the settings that were not given.
"""

import inspect
from collections.abc import Callable, Collection
from dataclasses import fields
from functools import wraps
from typing import Any

from overpaint.cli.setting import Setting
from overpaint.cli.syntax import (
    parse_controls,
    parse_crop,
    parse_extend,
    parse_inpaint,
    parse_interval,
    parse_loras,
    parse_mask,
    parse_size,
    parse_truncate,
    parse_upscale_to,
)
from overpaint.request.fields import DEFAULT_STRENGTH

SETTINGS = {
    setting.field: setting
    for setting in (
        Setting(
            "strength",
            ("--strength", "-s"),
            float,
            "How much to repaint: 0 keeps the picture, 1 repaints everything.",
            default=str(DEFAULT_STRENGTH),
        ),
        Setting(
            "match_image_colors",
            ("--match-image-colors/--no-match-image-colors",),
            bool,
            "Give the whole result the colors of the picture, without a mask.",
        ),
        Setting("negative_prompt", ("--negative",), str, "Words to steer away from."),
        Setting(
            "preset",
            ("--preset",),
            str,
            "Less work for a different picture: quality is exact, fast, or turbo (few-step LoRA).",
        ),
        Setting("num_inference_steps", ("--steps",), int, "Sampler steps, 1 to 1000."),
        Setting(
            "guidance_scale",
            ("--guidance", "-g"),
            float,
            "How closely to follow the prompt: above 1 up to 50; 0 turns guidance off.",
        ),
        Setting(
            "seed",
            ("--seed",),
            int,
            "Seed of the first picture; picture i has seed + i.",
            default="random",
        ),
        Setting(
            "subseed",
            ("--subseed",),
            int,
            "Seed of a variation, with --subseed-strength; picture i has subseed + i.",
            default="random",
        ),
        Setting(
            "subseed_strength",
            ("--subseed-strength",),
            float,
            "How much of the noise comes from the subseed: 0 to 1.",
        ),
        Setting("num_images", ("--num-images", "-n"), int, "Pictures to make, 1 to 64."),
        Setting(
            "size",
            ("--size",),
            str,
            "WIDTHxHEIGHT, keep (the picture's size) or native (its aspect at the model's area).",
            parse=parse_size,
        ),
        Setting(
            "fit",
            ("--fit",),
            str,
            "If the aspect ratio differs: cover crops, contain pads, stretch distorts.",
            default="cover",
        ),
        Setting(
            "mask",
            ("--mask",),
            str,
            "Picture of the same size: white or transparent is repainted, black is kept.",
            parse=parse_mask,
        ),
        Setting(
            "mask_from",
            ("--mask-from",),
            str,
            "Mask in words: box:L,T,R,B, ellipse:L,T,R,B, polygon:X,Y,…, color:#ff0000.",
        ),
        Setting(
            "mask_invert",
            ("--invert",),
            bool,
            "Repaint the part that the mask keeps, and keep the other part.",
        ),
        Setting(
            "mask_grow", ("--grow",), int, "Pixels by which the mask grows; negative shrinks it."
        ),
        Setting(
            "mask_blur", ("--blur",), int, "Pixels over which the edge of the mask is softened."
        ),
        Setting(
            "extend",
            ("--extend",),
            str,
            "Pixels to add at the sides, such as left=256,top=128.",
            default="None",
            parse=parse_extend,
        ),
        Setting(
            "task",
            ("--task",),
            str,
            "Purpose of the mask: retouch, replace, remove or extend.",
            default="replace",
        ),
        Setting(
            "fill",
            ("--fill",),
            str,
            "Content of the mask before painting: original, surroundings, flat or noise.",
            default="depends on --task",
        ),
        Setting(
            "langevin_steps",
            ("--inpaint",),
            str,
            "Way to paint the mask: plain, or langevin:COUNT, which fits it to its surroundings by "
            "COUNT Langevin steps before each step.",
            default="plain",
            parse=parse_inpaint,
        ),
        Setting(
            "crop",
            ("--crop",),
            str,
            "Paint the masked region alone, enlarged: auto, off, or pixels of context around it.",
            parse=parse_crop,
        ),
        Setting(
            "match_colors",
            ("--match-colors/--no-match-colors",),
            bool,
            "Shift the colors of the repainted part to those around it.",
            old_flags="--match-colours/--no-match-colours",
        ),
        Setting(
            "loras",
            ("--lora",),
            list[str],
            "LoRA by its name: NAME, NAME:0.8, NAME:0.8:text=0.5:up_blocks.0=0. Can be repeated.",
            default="None",
            parse=parse_loras,
        ),
        Setting(
            "lora_lenient",
            ("--lora-lenient",),
            bool,
            "Skip the keys of a LoRA that fit no layer, and report them.",
        ),
        Setting(
            "controls",
            ("--control",),
            list[str],
            "Control image: KIND, KIND=PICTURE or KIND@HINT, then :SCALE, :START-END, "
            ":net=NAME, :estimator=NAME, :mask=FILE, :weighting=soft. Can be repeated.",
            default="None",
            parse=parse_controls,
        ),
        Setting("vae", ("--vae",), str, "VAE in place of the model's own: a name, file or folder."),
        Setting(
            "decoder",
            ("--decoder",),
            str,
            "Tiny decoder in place of the VAE's, with less detail: tiny, or the name of a file.",
        ),
        Setting(
            "refiner",
            ("--refiner",),
            str,
            "Model of a second stage that finishes the picture.",
        ),
        Setting(
            "refine",
            ("--refine",),
            str,
            "Second stage: ensemble runs the last steps, sequential repaints the result.",
            default="ensemble",
        ),
        Setting(
            "high_noise_frac",
            ("--high-noise-frac",),
            float,
            "Share of the noise range that an ensemble's first model runs, 0 to 1.",
        ),
        Setting(
            "refine_strength",
            ("--refine-strength",),
            float,
            "Strength of a sequential second stage, above 0 to 1.",
        ),
        Setting(
            "refine_steps",
            ("--refine-steps",),
            int,
            "Steps of a sequential second stage.",
            default="same as --steps",
        ),
        Setting(
            "upscale",
            ("--upscale",),
            float,
            "Repaint the result, enlarged by this factor, 1 to 4.",
        ),
        Setting(
            "upscale_to",
            ("--upscale-to",),
            str,
            "WIDTHxHEIGHT of the repainted result in pixels, in place of --upscale.",
            parse=parse_upscale_to,
        ),
        Setting(
            "upscale_in",
            ("--upscale-in",),
            str,
            "Data to enlarge: pixels, or latents, which is faster and softer.",
        ),
        Setting(
            "aesthetic_score",
            ("--aesthetic-score",),
            float,
            "Aesthetic score for the refiner to aim at, 1 to 10.",
        ),
        Setting(
            "negative_aesthetic_score",
            ("--negative-aesthetic-score",),
            float,
            "Aesthetic score for the refiner to steer away from, 1 to 10.",
        ),
        Setting("sampler", ("--sampler",), str, "Integrator: euler, heun, unipc …"),
        Setting(
            "schedule", ("--schedule",), str, "Noise levels of the steps: karras, normal, beta …"
        ),
        Setting(
            "guidance_rescale",
            ("--guidance-rescale",),
            float,
            "Correct the contrast of strong guidance, 0 to 1.",
        ),
        Setting(
            "guidance_interval",
            ("--guidance-interval",),
            str,
            "Guide only in this part of the denoising range: two fractions.",
            default="0,1",
            parse=parse_interval,
        ),
        Setting("prompt_2", ("--prompt-2",), str, "Prompt for the second text encoder."),
        Setting(
            "negative_prompt_2",
            ("--negative-2",),
            str,
            "Negative prompt for the second text encoder.",
        ),
        Setting("clip_skip", ("--clip-skip",), int, "Text encoder layers to skip, 0 to 11."),
        Setting(
            "steps",
            ("--truncate-steps/--exact-steps",),
            bool,
            "Run only steps × strength of the steps, like diffusers.",
            default="exact",
            parse=parse_truncate,
        ),
    )
}
IMAGE_FIELDS = (
    *("strength", "fit", "mask", "mask_from", "mask_invert", "mask_grow", "mask_blur"),
    *("extend", "task", "fill", "langevin_steps", "crop", "match_colors", "match_image_colors"),
)
"""Fields that need a picture to repaint."""

TEXT_FIELDS = ("upscale_to",)
"""Fields that cannot be used with a picture to repaint."""

FLAG_OF_FIELD = {name: setting.flags[0].split("/")[0] for name, setting in SETTINGS.items()} | {
    "width": "--size",
    "height": "--size",
}
"""The option of each field, for error messages."""


def add_settings(
    common: type, *, without: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds the options of `SETTINGS` and of a dataclass to a command.

    The command receives its own arguments, an instance of the dataclass as `common`, and the values
    of the table's options as `settings`.

    Args:
        common: a dataclass whose fields are options; its annotations are typer's.
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

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command).parameters.values())
        own = [parameter for parameter in own if parameter.name not in {"common", "settings"}]

        @wraps(command)
        def run(**values: Any) -> None:
            settings = {p.name: values.pop(p.name) for p in table}
            for name in [setting.field for setting in offered if setting.old_flags]:
                alias = settings.pop(f"{name}_alias")
                settings[name] = alias if settings[name] is None else settings[name]
            chosen = common(**{p.name: values.pop(p.name) for p in shared})
            command(**values, common=chosen, settings=settings)

        parameters = sorted([*own, *table, *shared], key=lambda parameter: parameter.kind)
        # typer reads both the signature and the annotations.
        vars(run)["__signature__"] = inspect.Signature(parameters)
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def read_fields(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of `Request` that the command line sets.

    Raises:
        RequestError: a value has the wrong form.
        PictureError: a picture cannot be read.
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if value is not None:
            found |= SETTINGS[name].parse_value(value)
    return found
