"""Training of the UNet and both text encoders on the scenes' latents.

The objective is SDXL's epsilon prediction with min-SNR weights (Hang et al. 2023, γ = 5) where
there is little noise and debiased ones (Yu et al. 2023) where there is much, since a small network
otherwise learns late the decisions there: background and layout. One caption in ten is left empty;
size ids are true for crops and other shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from miniature import vae as autoencoder
from miniature.common import (
    Trainee,
    generator,
    half_precision,
    read_tensors,
    unwritten,
    unwritten_seeds,
    write_tensors,
)
from miniature.data import SHAPES, View, draw_view, views
from miniature.family import LENGTH, Painter, Tokenizers, noise_schedule
from miniature.scenes import caption
from miniature.text import SHORT

BATCH = 48  # of native pictures; other shapes keep the number of latent pixels
DROPOUT = 0.1
MIN_SNR = 5.0
MOST = 10.0
EARLY = 300  # the noisiest timesteps, where the layout is decided
EARLY_SHARE = 1 / 3  # of the batch is drawn from these alone
RATE = 1e-3
SHORT_SHARE = 0.92  # in this share of the steps seven in eight see SHORT tokens only, for speed
CHUNK = 4000  # scenes rendered and encoded at a time


@dataclass(frozen=True)
class Bucket:
    """All views of one shape: latent moments (n, 4, h, w) and their views."""

    mean: Tensor
    std: Tensor
    views: list[View]


def render(folder: Path, count: int, first_seed: int) -> None:
    """Render `count` views into `folder`, one file a chunk; chunks that are there are kept."""
    all_seeds = range(first_seed, first_seed + count)
    for seeds, path in unwritten_seeds("render", all_seeds, CHUNK, folder):
        pairs = list(zip(seeds, views(seeds), strict=True))
        tensors: dict[str, Tensor] = {}
        for size in SHAPES:
            chosen = [(s, p) for s, (v, p) in pairs if (v.height, v.width) == size]
            if chosen:
                tensors[f"pixels.{_name(size)}"] = torch.from_numpy(
                    np.stack([p for _, p in chosen])
                )
                tensors[f"seed.{_name(size)}"] = torch.tensor([s for s, _ in chosen])
        write_tensors(path, tensors)


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Path, folder: Path) -> None:
    """Latent moments of every rendered chunk, one file each; files that are there are kept."""
    for chunk, path in unwritten("encode", pixels, folder):
        tensors: dict[str, Tensor] = {}
        for key, value in chunk.items():
            kind, name = key.split(".")
            if kind == "seed":
                tensors[key] = value
                continue
            whole = autoencoder.to_tensor(value.numpy())
            tensors[f"mean.{name}"], tensors[f"std.{name}"] = autoencoder.moments(vae, whole)
        write_tensors(path, tensors)


def _name(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def buckets(folder: Path) -> list[Bucket]:
    """All chunks of a folder, joined by shape."""
    files = [read_tensors(path) for path in sorted(folder.glob("*.safetensors"))]
    found: list[Bucket] = []
    for size in SHAPES:
        name = _name(size)
        parts = [f for f in files if f"mean.{name}" in f]
        if parts:
            seeds = torch.cat([f[f"seed.{name}"] for f in parts]).tolist()
            mean, std = (torch.cat([f[f"{k}.{name}"] for f in parts]) for k in ("mean", "std"))
            found.append(Bucket(mean, std, [draw_view(s) for s in seeds]))
    return found


@dataclass(frozen=True)
class Batch:
    """The examples of a training step: scaled latents (n, 4, h, w), views and captions."""

    latents: Tensor
    views: list[View]
    captions: list[str]

    @property
    def time_ids(self) -> Tensor:
        """True size ids (n, 6)."""
        return torch.tensor([v.time_ids for v in self.views], dtype=torch.float)


def draw_batch(found: list[Bucket], scale: float, seed: int, step: int, size: int) -> Batch:
    """The batch of a step: one shape, sampled latents, fresh captions.

    `size` is that of native pictures; other shapes keep the number of latent pixels.
    """
    draw = generator(seed, step)
    rng = np.random.default_rng((seed, step))
    sizes = torch.tensor([len(b.views) for b in found], dtype=torch.float)
    bucket = found[int(torch.multinomial(sizes, 1, generator=draw))]
    count = round(size * 256 / (bucket.mean.shape[2] * bucket.mean.shape[3]))
    picks = torch.randint(len(bucket.views), (count,), generator=draw)
    mean, std = bucket.mean[picks].float(), bucket.std[picks].float()
    latents = scale * (mean + std * torch.randn(mean.shape, generator=draw))
    seen = [bucket.views[i] for i in picks.tolist()]
    captions = ["" if rng.random() < DROPOUT else caption(v.scene, rng) for v in seen]
    return Batch(latents, seen, captions)


def draw_timesteps(count: int, draw: torch.Generator) -> Tensor:
    """Timesteps (n,): uniform, but for a share from the `EARLY` steps of a sampler."""
    t = torch.randint(1000, (count,), generator=draw)
    early = 1000 - EARLY + torch.randint(EARLY, (count,), generator=draw)
    return torch.where(torch.arange(count) < count * EARLY_SHARE, early, t)


def weight(alphas: Tensor) -> Tensor:
    """Each timestep's weight; `alphas` are cumulative products (n,).

    min(SNR, γ) / SNR (Hang et al. 2023, equation 5, for epsilon prediction), times 1 / √SNR below
    an SNR of one (Yu et al. 2023, "Debias the training of diffusion models"), at most `MOST`.
    """
    snr = alphas / (1 - alphas)
    return snr.clamp(max=MIN_SNR) / snr * snr.rsqrt().clamp(1, MOST)


Predict = Callable[[Tensor, Tensor, Batch, int], Tensor]
"""Maps noisy latents, timesteps, their examples and the step to the predicted noise."""


def denoise(
    trainee: Trainee,
    predict: Predict,
    draw_step: Callable[[int], Batch],
    draw_times: Callable[[int, torch.Generator], Tensor],
    state: Path,
    *,
    name: str,
    steps: int,
    seed: int,
) -> None:
    """Train to predict the noise; `state` is written as it goes."""
    alphas = noise_schedule().alphas_cumprod

    def loss(step: int) -> Tensor:
        batch = draw_step(step)
        draw = generator(seed + 1, step)
        noise = torch.randn(batch.latents.shape, generator=draw)
        t = draw_times(len(noise), draw)
        a = alphas[t]
        noisy = a.sqrt()[:, None, None, None] * batch.latents
        noisy = noisy + (1 - a).sqrt()[:, None, None, None] * noise
        with half_precision():
            predicted = predict(noisy, t, batch, step)
        errors = functional.mse_loss(predicted.float(), noise, reduction="none").mean((1, 2, 3))
        return (errors * weight(a)).mean()

    trainee.train(name, steps, loss, state, warmup=200)


def train(
    folder: Path,
    scale: float,
    state: Path,
    *,
    steps: int,
    seed: int,
    rate: float = RATE,
    start: dict[str, Tensor] | None = None,
    keep_text: bool = False,
    compiled: bool = False,
    batch_size: int = BATCH,
) -> None:
    """Train on the encoded views of `folder`; `state` is written as it goes and resumed from.

    `start` are weights to begin with, of the text encoders if of nothing else. `keep_text` leaves
    those as they are, for the networks that were trained on them. `compiled` has the
    commonest shape compiled: three minutes first (and a C++ compiler), then a quarter less time a
    step.
    """
    painter = Painter(seed)
    if start is not None:
        painter.load_state_dict(start, strict=False)
    if keep_text:
        painter.text_encoder.requires_grad_(False)
        painter.text_encoder_2.requires_grad_(False)
    trainee = Trainee(painter, rate=rate, decay=0.999)
    fast = cast(Painter, torch.compile(painter)) if compiled else painter
    found, tokenizers = buckets(folder), Tokenizers()

    def predict(noisy: Tensor, t: Tensor, batch: Batch, step: int) -> Tensor:
        length = SHORT if step < SHORT_SHARE * steps and step % 8 else LENGTH
        context, pooled = painter.encode(*tokenizers(batch.captions, length))
        common = length == SHORT and noisy.shape[2:] == (16, 16)
        return (fast if common else painter)(noisy, t, context, pooled, batch.time_ids)

    denoise(
        trainee,
        predict,
        lambda step: draw_batch(found, scale, seed, step, batch_size),
        draw_timesteps,
        state,
        name="unet",
        steps=steps,
        seed=seed,
    )
