"""The report card: held-out prompts, painted by the product itself, read by the judge."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from miniature import vae as autoencoder
from miniature.common import progress
from miniature.judge import Judge, Verdict, truth
from miniature.rendering import render
from miniature.scenes import (
    STYLES,
    Scene,
    allowed_backgrounds,
    allowed_colors,
    caption,
    draw_scene,
)
from overpaint.diffusion import latents
from overpaint.diffusion.denoise import Trajectory, group_by_batch_key, step
from overpaint.diffusion.planner import plan
from overpaint.imaging import codec as pictures_of
from overpaint.models.addons import NO_ADDONS, AddonLoader, Addons
from overpaint.models.checkpoint import load_model
from overpaint.models.library.library import Library
from overpaint.models.model import Model
from overpaint.picture import Picture
from overpaint.request import Request

GROUP = 24  # pictures painted at once
STRENGTH = 0.7
STRENGTHS = tuple(n / 10 for n in range(1, 11))
FIRST_SEED = 40_000_000  # of the held-out scenes, beyond every seed that training uses


@dataclass(frozen=True)
class Figure:
    """One line of the report card.

    Attributes:
        name: the measured quantity.
        value: a share, a ratio, dB or ΔE, as the name says.
        wanted: the least value that is good, or the greatest; None where it is for comparison.
        count: of the cases that the value is the mean of.
        at_most: `wanted` is the greatest.
    """

    name: str
    value: float
    wanted: float | None
    count: int
    at_most: bool = False

    def __str__(self) -> str:
        if self.wanted is None:
            return f"     {self.name:52} {self.value:8.3f}  of {self.count}"
        good = self.value <= self.wanted if self.at_most else self.value >= self.wanted
        mark, bound = "ok  " if good else "FAR ", "most" if self.at_most else "least"
        return (
            f"{mark} {self.name:52} {self.value:8.3f}  of {self.count}, at {bound} {self.wanted:g}"
        )


def as_picture(pixels: NDArray[np.uint8]) -> Picture:
    """Pixels (height, width, 3), or (height, width) of a mask, as a request takes them."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return pictures_of.read_picture(buffer.getvalue())


def paint(
    model: Model,
    requests: Sequence[Request],
    name: str,
    addons: Addons = NO_ADDONS,
) -> NDArray[np.uint8]:
    """Paint many requests of one size together, at the same stage; (n, height, width, 3).

    `addons` are those of every request.
    """
    painted: list[NDArray[np.uint8]] = []
    starts = range(0, len(requests), GROUP)
    for n, _ in progress(name, 0, len(starts), every=2):
        group = requests[starts[n] : starts[n] + GROUP]
        planned = [plan(r, model, addons) for r in group]
        trajectories = [Trajectory(p.plans[0]) for p in planned]
        while live := [t for t in trajectories if not t.done]:
            for together in group_by_batch_key(live):
                step(together)
        for own, trajectory in zip(planned, trajectories, strict=True):
            if trajectory.latent is None:
                raise RuntimeError("a finished trajectory has a latent")
            image, _ = latents.decode_latent(model, trajectory.latent)
            painted.append(np.asarray(own.canvas.compose(image).convert("RGB")))
    return np.stack(painted)


def psnr(pixels: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The PSNR in dB of each of some pictures (n, height, width, 3) to another."""
    errors = np.square(pixels.astype(np.float64) - others).mean((1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(errors, 1e-6))


def _objects_right(verdict: Verdict, wanted: Verdict) -> list[bool]:
    """For each object asked for, whether one of that color and shape is in the picture."""
    return [o in verdict.objects for o in wanted.objects]


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else math.nan


def held_out_scenes(count: int, first_seed: int) -> list[Scene]:
    """Held-out scenes, half of one object and half of two."""
    return [
        draw_scene(np.random.default_rng(first_seed + i), held_out=True, two=i % 2 == 1)
        for i in range(count)
    ]


def full_caption(scene: Scene) -> str:
    return caption(scene, np.random.default_rng(scene.texture), full=True)


def prompted(
    model: Model, judge: Judge, count: int, guidance: float
) -> tuple[list[Figure], NDArray[np.uint8]]:
    """Text to image on held-out prompts."""
    scenes = held_out_scenes(count, FIRST_SEED)
    requests = [
        Request(prompt=full_caption(s), seed=i, guidance_scale=guidance)
        for i, s in enumerate(scenes)
    ]
    painted = paint(model, requests, "create")
    return read_prompted(judge, painted, scenes), painted


def read_prompted(judge: Judge, painted: NDArray[np.uint8], scenes: list[Scene]) -> list[Figure]:
    """Which pictures show what their scenes' captions say."""
    count = len(scenes)
    pairs = list(zip(judge.read(painted), [truth(s) for s in scenes], strict=True))
    objects = [right for v, w in pairs for right in _objects_right(v, w)]
    two = [v.layout == w.layout and v.objects == w.objects for v, w in pairs if w.layout != "one"]
    return [
        Figure("object shape and color", _share(objects), 0.90, len(objects)),
        Figure("background", _share([v.background == w.background for v, w in pairs]), 0.95, count),
        Figure("style", _share([v.style == w.style for v, w in pairs]), 0.95, count),
        Figure("two objects, both right and in relation", _share(two), 0.80, len(two)),
    ]


def restyled(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return the scene in another style that can show its content."""
    colors = {o.color for o in scene.objects}
    styles = [
        style
        for style in STYLES
        if style != scene.style
        and scene.background in allowed_backgrounds(style)
        and colors <= set(allowed_colors(style, scene.background))
    ]
    return dataclasses.replace(scene, style=styles[int(rng.integers(len(styles)))])


def from_sketches(
    model: Model, judge: Judge, count: int, guidance: float
) -> tuple[list[Figure], NDArray[np.uint8]]:
    """Image to image: a pencil sketch, and a prompt for the same content in another style."""
    sources, wanted = draw_sketches(count)
    requests = [
        Request(
            prompt=full_caption(w),
            image=as_picture(p),
            strength=STRENGTH,
            seed=i,
            guidance_scale=guidance,
        )
        for i, (w, p) in enumerate(zip(wanted, sources, strict=True))
    ]
    painted = paint(model, requests, "edit")
    figures = read_restyled(judge, painted, wanted)
    return figures, np.concatenate([sources[:12], painted[:12]])


def draw_sketches(count: int) -> tuple[NDArray[np.uint8], list[Scene]]:
    """Pencil sketches (n, height, width, 3), and their scenes in another style."""
    rng = np.random.default_rng(FIRST_SEED + 1)
    sketches: list[Scene] = []
    while len(sketches) < count:
        scene = draw_scene(rng, held_out=True, two=len(sketches) % 2 == 1)
        if scene.style == "pencil sketch":
            sketches.append(scene)
    wanted = [restyled(s, rng) for s in sketches]
    return np.stack([render(s) for s in sketches]), wanted


def read_restyled(judge: Judge, painted: NDArray[np.uint8], wanted: list[Scene]) -> list[Figure]:
    """Which pictures have the wanted style, and which kept their objects."""
    count = len(wanted)
    pairs = list(zip(judge.read(painted), [truth(w) for w in wanted], strict=True))
    return [
        Figure(
            "sketch restyled: style", _share([v.style == w.style for v, w in pairs]), 0.9, count
        ),
        Figure(
            "sketch restyled: same objects",
            _share([v.objects == w.objects and v.layout == w.layout for v, w in pairs]),
            0.8,
            count,
        ),
    ]


def round_trip(model: Model, count: int) -> Figure:
    """The autoencoder's mean PSNR on held-out renders."""
    pixels = np.stack([render(s) for s in held_out_scenes(count, FIRST_SEED + 100_000)])
    ratios = autoencoder.psnr(model.vae, pixels)
    return Figure("VAE round trip, dB", float(ratios.mean()), 30.0, count)


def tiny_decoding(model: Model, judge: Judge, count: int) -> list[Figure]:
    """The tiny decoder on the latents of held-out renders: PSNR to the VAE, and what is right."""
    decoder = AddonLoader(model, Library()).load_decoder("tiny")
    scenes = held_out_scenes(count, FIRST_SEED + 200_000)
    ratios: list[float] = []
    painted: list[NDArray[np.uint8]] = []
    for scene in scenes:
        moments, _ = latents.encode_pixels(
            model, pictures_of.to_array(Image.fromarray(render(scene)))
        )
        whole, _ = latents.decode_latent(model, moments.mean)
        tiny = np.asarray(latents.decode_tiny(model, decoder, moments.mean))
        errors = np.square(tiny.astype(np.float64) - np.asarray(whole)).mean()
        ratios.append(10 * math.log10(255**2 / max(errors, 1e-6)))
        painted.append(tiny)
    pairs = zip(judge.read(np.stack(painted)), map(truth, scenes), strict=True)
    objects = [right for v, w in pairs for right in _objects_right(v, w)]
    return [
        Figure("tiny decoder to the VAE, dB", float(np.mean(ratios)), 27.0, count),
        Figure("tiny decoder: object shape and color", _share(objects), 0.95, len(objects)),
    ]


@dataclass(frozen=True)
class Sweep:
    """At each of `STRENGTHS`, of each source: (strengths, sources)."""

    likeness: NDArray[np.float64]
    fit: NDArray[np.float64]

    @property
    def means(self) -> dict[str, list[float]]:
        return {"likeness": self.likeness.mean(1).tolist(), "fit": self.fit.mean(1).tolist()}

    @property
    def monotone(self) -> bool:
        """True if likeness never rises, and fit never falls, by more than its error."""
        return never_falls(-self.likeness) and never_falls(self.fit)


def never_falls(values: NDArray[np.float64]) -> bool:
    """Return whether no row's mean falls by more than two of its standard errors."""
    steps = np.diff(values, axis=0)
    errors = steps.std(1, ddof=1) / math.sqrt(steps.shape[1])
    return bool((steps.mean(1) >= -2 * errors).all())


def fit(verdict: Verdict, wanted: Verdict) -> float:
    """The share of what a prompt says that is in the picture: style, background, each object."""
    said = [verdict.style == wanted.style, verdict.background == wanted.background]
    return _share(said + _objects_right(verdict, wanted))


def sweep(model: Model, judge: Judge, count: int, guidance: float) -> Sweep:
    """Sources repainted with a contradicting prompt, at strengths 0.1 … 1.0.

    Likeness is the PSNR to the source over 40 dB; fit is the share of the prompt that is there.
    """
    rng = np.random.default_rng(FIRST_SEED + 2)
    pairs: list[tuple[Scene, Scene]] = []
    while len(pairs) < count:
        source, other = (draw_scene(rng, held_out=True) for _ in range(2))
        shared = {o.shape for o in source.objects} & {o.shape for o in other.objects}
        if source.style != other.style and source.background != other.background and not shared:
            pairs.append((source, other))
    sources = np.stack([render(s) for s, _ in pairs])
    wanted = [truth(o) for _, o in pairs]
    likeness: list[NDArray[np.float64]] = []
    fits: list[list[float]] = []
    for strength in STRENGTHS:
        requests = [
            Request(
                prompt=full_caption(other),
                image=as_picture(pixels),
                strength=strength,
                seed=i,
                guidance_scale=guidance,
            )
            for i, ((_, other), pixels) in enumerate(zip(pairs, sources, strict=True))
        ]
        painted = paint(model, requests, f"strength {strength}")
        likeness.append(psnr(painted, sources) / 40)
        fits.append([fit(v, w) for v, w in zip(judge.read(painted), wanted, strict=True)])
    return Sweep(np.stack(likeness), np.asarray(fits))


def plot(means: dict[str, list[float]], path: Path) -> None:
    """Both curves of `Sweep.means` over strength."""
    mpl.use("svg" if path.suffix == ".svg" else "agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    axes.plot(
        STRENGTHS, means["likeness"], marker="o", label="likeness to the source (PSNR / 40 dB)"
    )
    axes.plot(STRENGTHS, means["fit"], marker="s", label="fit to a contradicting prompt")
    axes.set(xlabel="strength", ylim=(0, 1.02), xlim=(0.05, 1.05))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
    plt.close(figure)


def grid(pixels: NDArray[np.uint8], columns: int) -> Image.Image:
    """Pictures (n, h, w, 3) in rows."""
    rows = [
        np.concatenate(list(pixels[i : i + columns]), 1) for i in range(0, len(pixels), columns)
    ]
    return Image.fromarray(np.concatenate([r for r in rows if r.shape == rows[0].shape], 0))


def report(
    model_name: str, judge: Judge, out: Path, *, count: int, sweep_count: int, guidance: float
) -> None:
    """Measure everything, print the table, and one JSON line at the end; plots go into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    model = load_model(model_name)
    figures, created = prompted(model, judge, count, guidance)
    grid(created[:48], 12).save(out / "created.png")
    more, edited = from_sketches(model, judge, count, guidance)
    grid(edited, 12).save(out / "edited.png")
    figures += [*more, round_trip(model, 200), *tiny_decoding(model, judge, 200)]
    found = sweep(model, judge, sweep_count, guidance)
    plot(found.means, out / "strength.svg")
    print(*figures, sep="\n")
    print(f"strengths {STRENGTHS}")
    for name, means in found.means.items():
        print(f"{name:8}", *(f"{v:.3f}" for v in means))
    print("monotone" if found.monotone else "NOT monotone")
    record = {f.name: round(f.value, 4) for f in figures}
    print(json.dumps({**record, **found.means, "monotone": found.monotone}))
