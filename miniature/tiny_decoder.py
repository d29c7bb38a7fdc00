"""The tiny decoder: TAESD's wiring (github.com/madebyollin/taesd), distilled from the VAE.

It sees the latents of pictures with some noise, as an imperfect UNet leaves them, and learns what
the VAE's decoder makes of them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import DecoderTiny
from numpy.typing import NDArray
from torch import Tensor

from miniature.common import (
    Trainee,
    averaged_weights,
    generator,
    half_precision,
    progress,
    write_tensors,
)
from miniature.vae import decode, encode, picture_loss, scaling, to_pictures, to_tensor

CHANNELS = 32  # half of TAESD's
BLOCKS = (2, 2, 2, 1)  # of each size
BATCH = 16  # crops in a step
CROP = 8  # cells of a side
SCENES = 2000  # pictures that are decoded once, before the first step
JITTER = 0.1  # the largest standard deviation of the noise on unit latents


def build(seed: int = 0) -> DecoderTiny:
    """An untrained decoder."""
    torch.manual_seed(seed)
    return DecoderTiny(4, 3, BLOCKS, (CHANNELS,) * len(BLOCKS), 2, "relu", "nearest")


@torch.no_grad()
def decode_scenes(vae: AutoencoderKL, scenes: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """The scaled latents (n, 4, 16, 16) of scenes, and what the VAE makes of them, in 0..255."""
    latents: list[Tensor] = []
    pictures: list[Tensor] = []
    for n, _ in progress("tiny decoder's lessons", 0, -(-len(scenes) // 20), every=10):
        with half_precision():
            found = encode(vae, to_tensor(scenes[20 * n : 20 * n + 20])).mean.float()
            decoded = decode(vae, found).float()
        latents.append(found * scaling(vae))
        pictures.append(torch.from_numpy(to_pictures(decoded)))
    return torch.cat(latents), torch.cat(pictures)


def train(
    vae: AutoencoderKL,
    scenes: NDArray[np.uint8],
    state: Path,
    *,
    steps: int,
    seed: int,
    batch_size: int = BATCH,
) -> None:
    """Train on pictures (n, 128, 128, 3); `state` is written as it goes and resumed from."""
    trainee = Trainee(build(seed), rate=2e-3, decay=0.998)
    latents, pictures = decode_scenes(vae, scenes[:SCENES])
    factor = pictures.shape[1] // latents.shape[2]

    def loss(step: int) -> Tensor:
        draw = generator(seed, step)
        picks = torch.randint(len(latents), (batch_size,), generator=draw)
        places = torch.randint(0, latents.shape[2] - CROP + 1, (batch_size, 2), generator=draw)
        cells: list[Tensor] = []
        pixels: list[Tensor] = []
        for pick, (top, left) in zip(picks, places.tolist(), strict=True):
            cells.append(latents[pick, :, top : top + CROP, left : left + CROP])
            rows, columns = (slice(factor * v, factor * (v + CROP)) for v in (top, left))
            pixels.append(pictures[pick, rows, columns])
        x = torch.stack(cells)
        spread = JITTER * torch.rand(batch_size, 1, 1, 1, generator=draw)
        x = x + spread * torch.randn(x.shape, generator=draw)
        with half_precision():
            y = trainee.module(x)
        return picture_loss(y.float(), to_tensor(torch.stack(pixels).numpy()))

    trainee.train("tiny decoder", steps, loss, state)


def export(state: Path, path: Path) -> None:
    """Write the averaged decoder in fp16, in TAESD's own layout: the clamp counts as a layer."""
    tensors: dict[str, Tensor] = {}
    for key, value in averaged_weights(state).items():
        _, number, rest = key.split(".", 2)
        tensors[f"{int(number) + 1}.{rest}"] = value.half()
    write_tensors(path, tensors)
