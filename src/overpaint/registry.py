"""The names of samplers and schedules, with the names that other programs give them.

One line here and one function of the same name in `diffusion/samplers.py` (or
`diffusion/schedule.py`) make a new sampler (or schedule). This table imports nothing, so that a
request is checked without loading torch.
"""

from dataclasses import dataclass
from typing import Literal

from overpaint.errors import RequestError, did_you_mean, quote_value


@dataclass(frozen=True)
class Named:
    """A sampler or a schedule.

    Attributes:
        name: ours, and the name of the function.
        label: what A1111 calls it, as written into picture metadata.
        aliases: other spellings that are understood: Replicate's and diffusers' names.
    """

    name: str
    label: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sampler(Named):
    """A sampler.

    Attributes:
        evaluations: network evaluations per step (the last step of a two-evaluation sampler
            takes one).
        stochastic: draws fresh noise while it runs.
        drops_penultimate: leaves out the last sigma before zero, whose step is so short that a
            second-order sampler gains nothing there (as A1111 does).
    """

    evaluations: int = 1
    stochastic: bool = False
    drops_penultimate: bool = False


Fill = Literal["original", "surroundings", "flat", "noise"]
"""What is inside a mask before painting: what was there, its surroundings blurred into it, their
mean colour, or latent noise."""

Space = Literal["pixels", "latents"]
"""What is resampled when a picture is enlarged for its second stage."""

Task = Literal["retouch", "replace", "remove", "extend"]


@dataclass(frozen=True)
class Repaint:
    """What a task with a mask stands for, where the request does not say.

    Attributes:
        strength: 0 to 1.
        fill: before painting.
    """

    strength: float
    fill: Fill


TASKS: dict[Task, Repaint] = {
    "retouch": Repaint(0.5, "original"),
    "replace": Repaint(1.0, "surroundings"),
    "remove": Repaint(0.8, "surroundings"),
    "extend": Repaint(0.9, "surroundings"),
}

Weighting = Literal["balanced", "soft", "guess"]
"""How a control net's scale is shared out over the levels of the network: everywhere the same; less
the finer the level, so that the prompt has more to say; or that, steeper, and only where the prompt
speaks, so that the hint alone decides what the prompt leaves open."""


Sight = Literal["depth", "classes"]
"""What a network sees in a picture: how near things are, or what they are."""


@dataclass(frozen=True)
class Hint:
    """A kind of picture that steers the structure of another.

    Attributes:
        shows: what, in a few words.
        union: which control type of a union net it is (xinsir's numbering); None where such a net
            knows none.
        labels: its colours name things, so that between two of them there is nothing.
        sight: what an estimator sees that it can be drawn from; None where none is of use.
    """

    shows: str
    union: int | None = None
    labels: bool = False
    sight: Sight | None = None


HINTS: dict[str, Hint] = {
    "canny": Hint("hard edges, one pixel wide", 3),
    "lineart": Hint("lines, as drawn with a pen", 3),
    "scribble": Hint("few, thick lines", 2),
    "softedge": Hint("edges by how strong they are", 2),
    "depth": Hint("what is near, bright", 1, sight="depth"),
    "normal": Hint("which way surfaces face", 4, sight="depth"),
    "segmentation": Hint("what is where, by colour", 5, labels=True, sight="classes"),
    "pose": Hint("people's joints and limbs", 0),
    "tile": Hint("the picture itself, coarse", 6),
    "blur": Hint("the picture itself, out of focus", 6),
    "shuffle": Hint("the picture's colours and textures, anywhere"),
    "palette": Hint("the picture's colours, in large squares"),
}

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
            ("dpm2_ancestral", "dpm_2_ancestral", "kdpm2ancestraldiscrete"),
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
        Named("trailing", "SGM Uniform", ("sgm_uniform",)),
        Named("karras", "Karras"),
        Named("exponential", "Exponential"),
        Named("polyexponential", "Polyexponential"),
        Named("simple", "Simple"),
        Named("beta", "Beta"),
        Named("align_your_steps", "Align Your Steps", ("ays",)),
    )
}

# Names of other programs that mean a sampler and a schedule at once.
PAIRS: dict[str, tuple[str, str]] = {
    "karrasdpm": ("dpmpp_2m", "karras"),
}


def _key(name: str) -> str:
    key = name.lower().replace("+", "p").replace(" ", "_").replace("-", "_")
    return key.removesuffix("scheduler")  # of diffusers' class names


def _index(table: "dict[str, Sampler] | dict[str, Named]") -> dict[str, str]:
    return {
        _key(spelling): named.name
        for named in table.values()
        for spelling in (named.name, named.label, *named.aliases)
    }


_SAMPLERS = _index(SAMPLERS)
_SCHEDULES = _index(SCHEDULES)


def schedule_name(name: str) -> str:
    """Our name of a schedule, from any known spelling.

    Raises:
        RequestError: no such schedule; near matches are named.
    """
    if (found := _SCHEDULES.get(_key(name))) is None:
        raise RequestError(
            "schedule", f"unknown schedule {quote_value(name)}.{did_you_mean(name, SCHEDULES)}"
        )
    return found


def sampler_name(name: str) -> tuple[str, str | None]:
    """Our name of a sampler, and the schedule that the spelling implies, if any.

    "K_EULER" is ("euler", None); "DPM++ 2M Karras" and "KarrasDPM" are ("dpmpp_2m", "karras").

    Raises:
        RequestError: no such sampler; near matches are named.
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
        "sampler", f"unknown sampler {quote_value(name)}.{did_you_mean(name, SAMPLERS)}"
    )
