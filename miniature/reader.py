"""The reader: a small network, trained on rendered scenes alone, that says what is where.

For each pixel which shape is there, if any, and of which colour. It never sees a picture that a
model painted. As the judge's, some of its renders are shifted, blurred, noisy or sent through the
autoencoder; unlike the judge, it does not mind where objects are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from .common import Trainee, averaged_weights, generator, read_tensors, write_tensors
from .judge import augment, round_trip
from .scenes import COLOURS, SHAPES, Scene, labels
from .vae import to_tensor

BATCH = 24
WIDTHS = (16, 32, 64, 96)
NOTHING = 0  # the class of the background; shapes follow in the order of `SHAPES`


@dataclass(frozen=True)
class Reading:
    """What is where in pictures.

    Attributes:
        shapes: (n, h, w), the index in `SHAPES`, or −1.
        colours: (n, h, w), the index in `COLOURS`, of what is there.
    """

    shapes: NDArray[np.int64]
    colours: NDArray[np.int64]


class Reader(nn.Module):
    """A U-Net of four levels with one linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList()
        before = 3
        for width in WIDTHS:
            self.down.append(_block(before, width))
            before = width
        self.up = nn.ModuleList(
            _block(deep + flat, flat)
            for deep, flat in zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(WIDTHS[0], 1 + len(SHAPES) + len(COLOURS), 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of shapes (n, 17, h, w) and colours (n, 12, h, w) for images in −1..1."""
        kept: list[Tensor] = []
        x = images
        for level, block in enumerate(self.down):
            x = block(functional.avg_pool2d(x, 2) if level else x)
            kept.append(x)
        for block, skip in zip(self.up, kept[-2::-1], strict=True):
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([x, skip], 1))
        shapes, colours = self.head(x).split([1 + len(SHAPES), len(COLOURS)], 1)
        return shapes, colours

    @torch.no_grad()
    def read(self, pictures: NDArray[np.uint8]) -> Reading:
        """Read pictures (n, h, w, 3)."""
        shapes: list[Tensor] = []
        colours: list[Tensor] = []
        for start in range(0, len(pictures), BATCH):
            found = self(to_tensor(pictures[start : start + BATCH]))
            shapes.append(found[0].argmax(1) - 1)
            colours.append(found[1].argmax(1))
        return Reading(torch.cat(shapes).numpy(), torch.cat(colours).numpy())


def _block(inner: int, outer: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inner, outer):
        layers += [nn.Conv2d(width, outer, 3, padding=1), nn.GroupNorm(8, outer), nn.SiLU()]
    return nn.Sequential(*layers)


def truth(scene: Scene) -> Reading:
    """What a perfect reader reads in a scene's picture; the batch's axis is there, of one."""
    shapes = labels(scene)[None]
    names = list(SHAPES)
    colours = np.zeros_like(shapes)
    for item in scene.objects:
        colours[shapes == names.index(item.shape)] = list(COLOURS).index(item.colour)
    return Reading(shapes, colours)


def train(
    scenes: list[Scene],
    pictures: NDArray[np.uint8],
    state: Path,
    *,
    steps: int,
    seed: int,
    vae: AutoencoderKL,
) -> None:
    """Train on renders (n, 128, 128, 3), a third of each batch sent through the autoencoder."""
    torch.manual_seed(seed)
    reader = Reader()
    trainee = Trainee(reader, rate=2e-3, decay=0.995, weight_decay=0.02)
    pixels = torch.from_numpy(pictures)
    truths = [truth(scene) for scene in scenes]
    shapes = torch.from_numpy(np.concatenate([t.shapes for t in truths]).astype(np.int8))
    colours = torch.from_numpy(np.concatenate([t.colours for t in truths]).astype(np.int8))

    def loss(step: int) -> Tensor:
        draw = generator(seed, step)
        picks = torch.randint(len(pixels), (BATCH,), generator=draw)
        images = pixels[picks].permute(0, 3, 1, 2).float() / 127.5 - 1
        images[-BATCH // 3 :] = round_trip(vae, images[-BATCH // 3 :], draw)
        images = augment(images, draw, shift=0)
        with torch.autocast("cpu", torch.bfloat16):
            found = reader(images)
        wanted = shapes[picks].long() + 1
        there = wanted != NOTHING
        of_shapes = functional.cross_entropy(found[0].float(), wanted)
        each = functional.cross_entropy(found[1].float(), colours[picks].long(), reduction="none")
        return of_shapes + (each * there).sum() / there.sum()

    trainee.train("reader", steps, loss, state)


def overlap(reading: Reading, scenes: Sequence[Scene]) -> NDArray[np.float64]:
    """IoU of each prompted object with where its scene has it, the mean over a picture's."""
    names = list(SHAPES)
    found: list[float] = []
    for read, scene in zip(reading.shapes, scenes, strict=True):
        wanted = labels(scene)
        each = [
            ((read == n) & (wanted == n)).sum() / max(1, ((read == n) | (wanted == n)).sum())
            for n in (names.index(item.shape) for item in scene.objects)
        ]
        found.append(float(np.mean(each)))
    return np.asarray(found)


def coloured(reading: Reading, scenes: Sequence[Scene]) -> float:
    """The share of objects of which most pixels, where the scene has them, are as prompted."""
    names, colours = list(SHAPES), list(COLOURS)
    right: list[bool] = []
    for shapes, seen, scene in zip(reading.shapes, reading.colours, scenes, strict=True):
        where = labels(scene)
        for item in scene.objects:
            there = seen[(where == names.index(item.shape)) & (shapes >= 0)]
            counts = np.bincount(there, minlength=len(colours))
            right.append(bool(len(there)) and counts.argmax() == colours.index(item.colour))
    return float(np.mean(right))


def save(state: Path, path: Path) -> None:
    """Write the averaged reader in fp16."""
    write_tensors(path, {k: v.half() for k, v in averaged_weights(state).items()})


def load(path: Path) -> Reader:
    """The reader that `save` wrote."""
    reader = Reader()
    reader.load_state_dict({k: v.float() for k, v in read_tensors(path).items()})
    return reader.eval()
