"""Training of the inpainting UNet: nine channels, as SDXL's inpainting checkpoints have them.

Beside the noisy latent it sees the mask and the latent of the picture with the masked part gray.
Where a mask holds one object, half of the captions speak of that one alone; where it holds none,
half speak of the background alone, so that an object can be put there and taken away. The text
encoders stay as the UNet's training left them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor

from miniature import vae as autoencoder
from miniature.common import Trainee, generator, read_tensors, unwritten, write_tensors
from miniature.data import View, draw_view
from miniature.family import LENGTH, TextEncoders, Tokenizers, build_unet
from miniature.scenes import Scene, caption
from miniature.text import SHORT
from miniature.unet import DROPOUT, Batch, denoise, draw_timesteps
from overpaint.imaging import masks

BATCH = 48
RATE = 1e-3
FACTOR = 8  # pixels per latent cell
NATIVE = "128x128"
TOUCHED = 0.25  # of an object's box: less than this under the mask leaves it as it is


def build(seed: int = 0) -> UNet2DConditionModel:
    """An untrained UNet of 9 channels for latents of 16 × 16, of less than half the size."""
    torch.manual_seed(seed)
    return build_unet(in_channels=9, block_out_channels=(32, 64, 96), attention_head_dim=(1, 2, 3))


def draw_mask(rng: np.random.Generator, view: View) -> NDArray[np.bool_]:
    """Draw a mask (height, width): around an object, anywhere, one side, or everything."""
    height, width = view.height, view.width
    kind = rng.random()
    if kind < 0.4 and view.scene.objects:
        item = view.scene.objects[int(rng.integers(len(view.scene.objects)))]
        reach = item.radius * rng.uniform(1.1, 1.5, 2)
        center = np.array([item.x - view.left, item.y - view.top])
        return _shape(rng, height, width, center + item.radius * rng.uniform(-0.1, 0.1, 2), reach)
    if kind < 0.7:
        reach = np.array([width, height]) * rng.uniform(0.1, 0.35, 2)
        return _shape(rng, height, width, rng.uniform(0, 1, 2) * (width, height), reach)
    mask = np.zeros((height, width), bool)
    if kind < 0.85:
        for side in rng.permutation(4)[: int(rng.integers(1, 3))]:
            turned = np.rot90(mask, int(side))  # a view of the same memory
            turned[: int(len(turned) * rng.uniform(0.15, 0.5))] = True
        return mask
    return ~mask


def _shape(
    rng: np.random.Generator,
    height: int,
    width: int,
    center: NDArray[np.float64],
    reach: NDArray[np.float64],
) -> NDArray[np.bool_]:
    y, x = np.ogrid[0.5:height, 0.5:width]
    across, down = abs(x - center[0]) / reach[0], abs(y - center[1]) / reach[1]
    if rng.random() < 0.5:
        return across**2 + down**2 <= 1
    return (across <= 1) & (down <= 1)


def touched(view: View, mask: NDArray[np.bool_]) -> Scene:
    """The scene with those objects alone that lie under the mask."""
    kept = tuple(
        item
        for item in view.scene.objects
        if mask[_box(item.y - view.top, item.radius), _box(item.x - view.left, item.radius)].mean()
        > TOUCHED
    )
    return replace(
        view.scene, objects=kept, relation=view.scene.relation if len(kept) == 2 else None
    )


def _box(center: float, radius: float) -> slice:
    return slice(max(0, round(center - radius)), max(1, round(center + radius)))


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Path, folder: Path) -> None:
    """Draw a mask for each rendered view of native size, and encode the masked picture."""
    for chunk, path in unwritten("masks", pixels, folder):
        seeds = chunk[f"seed.{NATIVE}"]
        views = [draw_view(seed) for seed in seeds.tolist()]
        drawn = np.stack([mask_of(s, v) for s, v in zip(seeds.tolist(), views, strict=True)])
        whole = autoencoder.to_tensor(chunk[f"pixels.{NATIVE}"].numpy())
        mean, std = autoencoder.moments(vae, whole)
        kept, _ = autoencoder.moments(vae, whole * torch.from_numpy(~drawn)[:, None])
        cells = np.stack([masks.to_latent_cells(mask.astype(np.float32), FACTOR) for mask in drawn])
        write_tensors(
            path,
            {
                "seed": seeds,
                "mean": mean,
                "std": std,
                "cells": torch.from_numpy(cells)[:, None].half(),
                "kept": kept,
            },
        )


def mask_of(seed: int, view: View) -> NDArray[np.bool_]:
    """The mask that belongs to the view of a seed."""
    return draw_mask(np.random.default_rng((seed, 1)), view)


@dataclass(frozen=True)
class Masked(Batch):
    """Also the further channels (n, 5, h, w): the mask, and the latent of the masked picture."""

    channels: Tensor


@dataclass(frozen=True)
class Masks:
    """All masked views: `touched` are the scenes under the masks."""

    mean: Tensor
    std: Tensor
    channels: Tensor
    views: list[View]
    touched: list[Scene]

    def batch(self, scale: float, seed: int, step: int, size: int = BATCH) -> Masked:
        """Draw the batch of a step."""
        draw = generator(seed, step)
        rng = np.random.default_rng((seed, step))
        picks = torch.randint(len(self.views), (size,), generator=draw)
        mean, std = self.mean[picks].float(), self.std[picks].float()
        latents = scale * (mean + std * torch.randn(mean.shape, generator=draw))
        views = [self.views[i] for i in picks.tolist()]
        captions = [_caption(self.views[i].scene, self.touched[i], rng) for i in picks.tolist()]
        channels = self.channels[picks].float()
        channels[:, 1:] *= scale
        return Masked(latents, views, captions, channels)


def _caption(whole: Scene, part: Scene, rng: np.random.Generator) -> str:
    if rng.random() < DROPOUT:
        return ""
    return caption(part if len(part.objects) < 2 and rng.random() < 0.5 else whole, rng)


def load(folder: Path) -> Masks:
    """Read and join the output of `encode`."""
    mean: list[Tensor] = []
    std: list[Tensor] = []
    channels: list[Tensor] = []
    seeds: list[int] = []
    for path in sorted(folder.glob("*.safetensors")):
        masked = read_tensors(path)
        mean.append(masked["mean"])
        std.append(masked["std"])
        channels.append(torch.cat([masked["cells"], masked["kept"]], 1))
        seeds += masked["seed"].tolist()
    views = [draw_view(seed) for seed in seeds]
    scenes = [touched(view, mask_of(seed, view)) for seed, view in zip(seeds, views, strict=True)]
    return Masks(torch.cat(mean), torch.cat(std), torch.cat(channels), views, scenes)


def train(
    folder: Path,
    scale: float,
    encoders: TextEncoders,
    state: Path,
    *,
    steps: int,
    seed: int,
    compiled: bool = False,
    batch_size: int = BATCH,
) -> None:
    """Train on the masked views; `state` is written as it goes and resumed from."""
    unet = build(seed)
    trainee = Trainee(unet, rate=RATE, decay=0.999)
    found, tokenizers = load(folder), Tokenizers()
    encoders.requires_grad_(False)
    fast: Any = torch.compile(unet) if compiled else unet

    def predict(noisy: Tensor, t: Tensor, batch: Batch, step: int) -> Tensor:
        length = SHORT if step % 8 else LENGTH
        context, pooled = encoders.encode(*tokenizers(batch.captions, length))
        conditions = {"text_embeds": pooled, "time_ids": batch.time_ids}
        seen = torch.cat([noisy, cast(Masked, batch).channels], 1)
        run = fast if length == SHORT else unet
        return run(seen, t, context, added_cond_kwargs=conditions).sample

    denoise(
        trainee,
        predict,
        lambda step: found.batch(scale, seed, step, batch_size),
        draw_timesteps,
        state,
        name="inpaint",
        steps=steps,
        seed=seed,
    )
