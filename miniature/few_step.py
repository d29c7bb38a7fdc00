"""The few-step LoRA: four steps without guidance go where the guided base model goes in twenty.

The teacher is the base model. From noise, it paints trajectories of training captions with
guidance. Four steps of the schedule "trailing" divide each trajectory into four segments. From any
point of a segment, the student learns the direction of the straight line to the segment's end
(arXiv 2405.07510, "PeRFlow"; progressive distillation, arXiv 2202.00512, does so pair by pair).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from miniature.common import (
    Trainee,
    generator,
    half_precision,
    read_tensors,
    unwritten_seeds,
    write_tensors,
)
from miniature.data import NATIVE
from miniature.family import Painter, Tokenizers
from miniature.lora import UNET, add_changes, export_changes
from miniature.scenes import caption, draw_scene
from overpaint.diffusion.samplers import dpmpp_2m
from overpaint.diffusion.schedule import NoiseSchedule, make_sigmas
from overpaint.models.noise_config import NoiseConfig

SEGMENTS = 4  # the student's steps
STEPS = 20  # the teacher's
GUIDANCE = 5.0
RANK = 8
RATE = 2e-3
BATCH = 16
FIRST_SEED = 80_000_000
COUNT = 1250  # trajectories
CHUNK = 50  # of them are painted at once, and written to one file
LATENT = (4, NATIVE // 8, NATIVE // 8)
TIME_IDS = (NATIVE, NATIVE, 0, 0, NATIVE, NATIVE)
START_SHARE = 0.5  # of a batch is at the start of a segment, where four steps begin

SCHEDULE = NoiseSchedule(NoiseConfig())
SIGMAS = make_sigmas("trailing", STEPS, SCHEDULE)
PER_SEGMENT = STEPS // SEGMENTS


def predict_noise(
    painter: Painter, x: Tensor, sigmas: Tensor, context: Tensor, pooled: Tensor
) -> Tensor:
    """The network's estimate of the noise in x (n, 4, h, w) at sigmas (n,)."""
    t = torch.tensor([SCHEDULE.timestep(sigma) for sigma in sigmas.tolist()])
    scaled = x / (sigmas**2 + 1).sqrt()[:, None, None, None]
    ids = torch.tensor([TIME_IDS], dtype=torch.float).expand(len(x), -1)
    with half_precision():
        return painter(scaled, t, context, pooled, ids).float()


def draw_caption(seed: int) -> str:
    """The training caption of a seed."""
    rng = np.random.default_rng(seed)
    return caption(draw_scene(rng), rng)


@torch.no_grad()
def paint_trajectory(painter: Painter, captions: list[str], noise: Tensor) -> Tensor:
    """Paint with guidance from unit noise (n, 4, h, w); x at each of `SIGMAS`, (sigmas, n, …)."""
    tokenizers = Tokenizers()
    context, pooled = painter.encode(*tokenizers([*captions, *[""] * len(captions)]))
    points: list[Tensor] = []
    sampler = dpmpp_2m(SIGMAS[0] * noise, SIGMAS, lambda: noise)
    try:
        asked = next(sampler)
        while True:
            points.append(asked.x)
            sigmas = torch.full((2 * len(noise),), asked.sigma)
            rows = torch.cat([asked.x, asked.x])
            wanted, empty = predict_noise(painter, rows, sigmas, context, pooled).chunk(2)
            guided = empty + GUIDANCE * (wanted - empty)
            asked = sampler.send(asked.x - asked.sigma * guided)
    except StopIteration as stop:
        points.append(stop.value)
    return torch.stack(points)


def paint_trajectories(painter: Painter, folder: Path, count: int = COUNT) -> None:
    """Paint trajectories into `folder`, one file a chunk; chunks that are there are kept."""
    all_seeds = range(FIRST_SEED, FIRST_SEED + count)
    for seeds, path in unwritten_seeds("trajectories", all_seeds, CHUNK, folder):
        noise = torch.randn(len(seeds), *LATENT, generator=generator(1, seeds.start))
        points = paint_trajectory(painter, [draw_caption(seed) for seed in seeds], noise)
        write_tensors(path, {"seed": torch.tensor(list(seeds)), "points": points.half()})


@dataclass(frozen=True)
class Lessons:
    """Trajectories of the teacher.

    Attributes:
        points: x at each of `SIGMAS`, fp16 (sigmas, n, 4, h, w).
        captions: n captions.
    """

    points: Tensor
    captions: list[str]


def load(folder: Path) -> Lessons:
    """Read the output of `paint_trajectories`."""
    files = [read_tensors(path) for path in sorted(folder.glob("*.safetensors"))]
    seeds = torch.cat([file["seed"] for file in files]).tolist()
    points = torch.cat([file["points"] for file in files], 1)
    return Lessons(points, [draw_caption(seed) for seed in seeds])


def train(
    lessons: Lessons,
    painter: Painter,
    state: Path,
    *,
    steps: int,
    seed: int,
    batch_size: int = BATCH,
) -> None:
    """Train the LoRA; `state` is written as it goes and resumed from."""
    trainee = Trainee(add_changes(painter, {painter.unet: UNET}, RANK, seed), rate=RATE, decay=0.99)
    tokenizers = Tokenizers()
    sigmas = torch.tensor(SIGMAS)

    def loss(step: int) -> Tensor:
        draw = generator(seed, step)
        picks = torch.randint(len(lessons.captions), (batch_size,), generator=draw)
        segments = torch.randint(SEGMENTS, (batch_size,), generator=draw)
        inner = torch.randint(PER_SEGMENT, (batch_size,), generator=draw)
        inner[: round(START_SHARE * batch_size)] = 0
        at, to = PER_SEGMENT * segments + inner, PER_SEGMENT * (segments + 1)
        x, end = lessons.points[at, picks].float(), lessons.points[to, picks].float()
        with torch.no_grad():
            captions = [lessons.captions[pick] for pick in picks.tolist()]
            context, pooled = painter.encode(*tokenizers(captions))
        slopes = predict_noise(painter, x, sigmas[at], context, pooled)
        move = (sigmas[to] - sigmas[at])[:, None, None, None]
        errors = (x + move * slopes - end).square().mean((1, 2, 3))
        return (errors / (sigmas[to] ** 2 + 1)).mean()

    trainee.train("few-step", steps, loss, state)


def export(state: Path, path: Path) -> None:
    """Write the averaged changes. The title makes the loader know the kind."""
    export_changes(state, path, {"modelspec.title": f"miniature few-step, {SEGMENTS} steps"})
