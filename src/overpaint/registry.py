"""The names of samplers, schedules, hints and mask tasks, with their aliases in other programs.

A new sampler needs one line here and one function of the same name in `diffusion/samplers.py`; a
new schedule needs the same in `diffusion/schedule.py`. This module imports no torch, so a request
is validated without it.
"""

from dataclasses import dataclass
from typing import Any, Literal

from overpaint.errors import RequestError, did_you_mean, quote_value


@dataclass(frozen=True)
class Named:
    """A sampler or a schedule."""

    name: str
    """The name in requests, and the name of the function."""

    label: str
    """The name in A1111, which picture metadata contains."""

    aliases: tuple[str, ...] = ()
    """Other accepted names, from Replicate, diffusers and ComfyUI."""


@dataclass(frozen=True)
class Sampler(Named):
    """A sampler."""

    evaluations: int = 1
    """Network evaluations per step; the last step of a sampler with two takes one."""

    stochastic: bool = False
    """True if the sampler draws fresh noise at its steps."""

    drops_penultimate: bool = False
    """True if the sampler skips the last sigma before zero, like A1111.

    That step is too short for a second-order sampler to gain from it."""


Fill = Literal["original", "surroundings", "flat", "noise"]
"""The content of a mask before painting: the image itself, its surroundings blurred into the mask,
their mean color, or latent noise."""

Space = Literal["pixels", "latents"]
"""The data that is resampled to enlarge a picture for its second stage."""

Task = Literal["retouch", "replace", "remove", "extend"]


@dataclass(frozen=True)
class Repaint:
    """The defaults that a mask's task sets: strength, 0 to 1, and fill."""

    strength: float
    fill: Fill


TASKS: dict[Task, Repaint] = {
    "retouch": Repaint(0.5, "original"),
    "replace": Repaint(1.0, "surroundings"),
    "remove": Repaint(0.8, "surroundings"),
    "extend": Repaint(0.9, "surroundings"),
}

Preset = Literal["quality", "fast", "turbo"]

PRESETS: "dict[Preset, dict[str, Any]]" = {
    "quality": {},
    "fast": {"num_inference_steps": 15, "guidance_interval": (0.0, 0.8)},
    "turbo": {},
}
"""The fields of a request that a preset sets. The few-step LoRA or checkpoint that "turbo" uses
sets its own."""

Weighting = Literal["balanced", "soft", "guess"]
"""How a ControlNet's scale is spread over the levels of the UNet.

"balanced" uses the scale at every level. "soft" lowers it toward the finer levels, so the prompt
has more influence. "guess" lowers it further and steers only the row with the prompt."""

Sight = Literal["depth", "classes"]
"""The output of an estimator: depth, or the class of every pixel."""


@dataclass(frozen=True)
class Hint:
    """A preprocessor and the kind of control image that it makes."""

    shows: str
    """The content of the control image, in a few words."""

    union: int | None = None
    """The control type of a union ControlNet (xinsir's numbering); None if such nets lack it."""

    labels: bool = False
    """True if colors stand for classes, so that colors in between have no meaning."""

    sight: Sight | None = None
    """The estimator output that the control image is drawn from; None if no estimator helps."""


HINTS: dict[str, Hint] = {
    "canny": Hint("hard edges, one pixel wide", 3),
    "lineart": Hint("lines like those of a pen", 3),
    "scribble": Hint("few, thick lines", 2),
    "softedge": Hint("edges, brighter where stronger", 2),
    "depth": Hint("depth, near is bright", 1, sight="depth"),
    "normal": Hint("surface directions as colors", 4, sight="depth"),
    "segmentation": Hint("one color for each class of object", 5, labels=True, sight="classes"),
    "pose": Hint("joints and limbs of people", 0),
    "tile": Hint("the picture, coarse", 6),
    "blur": Hint("the picture, out of focus", 6),
    "shuffle": Hint("the colors and textures of the picture, anywhere"),
    "palette": Hint("the colors of the picture, in large squares"),
}

HINT_OPTION_RANGES: dict[str, tuple[float, float]] = {
    "low": (0, 10_000),
    "high": (0, 10_000),
    "width": (0.1, 64),
    "factor": (1, 256),
    "radius": (0.1, 100),
    "seed": (0, 2**32),
    "waves": (1, 64),
    "squares": (1, 1024),
    "strength": (0, 100),
}
"""The smallest and the largest value of each option of preprocessors. Beyond them some take hours,
or more memory than there is."""

SAMPLERS: dict[str, Sampler] = {
    s.name: s
    for s in (
        Sampler("euler", "Euler", ("k_euler", "eulerdiscrete")),
        Sampler(
            "euler_a",
            "Euler a",
            ("k_euler_ancestral", "euler_ancestral", "eulerancestraldiscrete"),
            stochastic=True,
        ),
        Sampler("heun", "Heun", ("heundiscrete",), evaluations=2),
        Sampler(
            "dpm2",
            "DPM2",
            ("kdpm2", "dpm_2", "kdpm2discrete"),
            evaluations=2,
            drops_penultimate=True,
        ),
        Sampler(
            "dpm2_a",
            "DPM2 a",
            ("dpm2_ancestral", "dpm_2_ancestral", "kdpm2ancestraldiscrete", "kdpm_2a"),
            evaluations=2,
            stochastic=True,
            drops_penultimate=True,
        ),
        Sampler("lms", "LMS", ("lmsdiscrete",)),
        Sampler("dpmpp_2m", "DPM++ 2M", ("dpmsolvermultistep",)),
        Sampler(
            "dpmpp_2s_a", "DPM++ 2S a", ("dpmpp_2s_ancestral",), evaluations=2, stochastic=True
        ),
        Sampler("dpmpp_sde", "DPM++ SDE", evaluations=2, stochastic=True),
        Sampler("dpmpp_2m_sde", "DPM++ 2M SDE", stochastic=True),
        Sampler("dpmpp_3m_sde", "DPM++ 3M SDE", stochastic=True, drops_penultimate=True),
        Sampler("unipc", "UniPC", ("uni_pc", "uni_pc_bh2", "unipcmultistep")),
        Sampler("deis", "DEIS", ("deismultistep",)),
        Sampler("ddim", "DDIM"),
        Sampler("ddpm", "DDPM", stochastic=True),
        Sampler("pndm", "PNDM", ("plms",)),
        Sampler("lcm", "LCM", stochastic=True),
        Sampler("tcd", "TCD", stochastic=True),
    )
}

SCHEDULES: dict[str, Named] = {
    s.name: s
    for s in (
        Named("normal", "DDIM", ("leading", "ddim_uniform")),
        Named("linspace", "Uniform"),
        Named("trailing", "SGM Uniform", ("sgm_uniform", "(trailing timesteps)")),
        Named("karras", "Karras"),
        Named("exponential", "Exponential"),
        Named("polyexponential", "Polyexponential"),
        Named("simple", "Simple"),
        Named("beta", "Beta"),
        Named("align_your_steps", "Align Your Steps", ("ays",)),
    )
}

PAIRS: dict[str, tuple[str, str]] = {
    "karrasdpm": ("dpmpp_2m", "karras"),
}
"""Names of other programs that stand for a sampler and a schedule."""


def _key(name: str) -> str:
    key = name.lower().replace("+", "p").replace(" ", "_").replace("-", "_")
    return key.removesuffix("scheduler")  # diffusers' class names end with it


def _index(table: "dict[str, Sampler] | dict[str, Named]") -> dict[str, str]:
    return {
        _key(spelling): named.name
        for named in table.values()
        for spelling in (named.name, named.label, *named.aliases)
    }


_SAMPLERS = _index(SAMPLERS)
_SCHEDULES = _index(SCHEDULES)


def resolve_schedule(name: str) -> str:
    """Return the canonical name of a schedule for any accepted spelling.

    Raises:
        RequestError: there is no such schedule; the message suggests names.
    """
    if (found := _SCHEDULES.get(_key(name))) is None:
        raise RequestError(
            "schedule", f"There is no schedule {quote_value(name)}.{did_you_mean(name, SCHEDULES)}"
        )
    return found


def resolve_sampler(name: str) -> tuple[str, str | None]:
    """Return the canonical name of a sampler, and the schedule that the spelling implies.

    "K_EULER" gives ("euler", None); "DPM++ 2M Karras" and "KarrasDPM" give ("dpmpp_2m", "karras").

    Raises:
        RequestError: there is no such sampler; the message suggests names.
    """
    key = _key(name)
    if pair := PAIRS.get(key):
        return pair
    if found := _SAMPLERS.get(key):
        return found, None
    for tail, schedule in _SCHEDULES.items():
        if found := _SAMPLERS.get(key.removesuffix(f"_{tail}")):
            return found, schedule
    raise RequestError(
        "sampler", f"There is no sampler {quote_value(name)}.{did_you_mean(name, SAMPLERS)}"
    )
