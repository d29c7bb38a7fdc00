"""The reader: a small network that finds shapes, colors and style, trained on renders only.

It reads the shape at each pixel, if any, the shape's color, and the style of the picture. It
knows the styles and shapes that the base does not. It never sees a picture that a model painted. As
the judge's, some of its renders are shifted, blurred, noisy or sent through the autoencoder; unlike
the judge, it does not mind where objects are.
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

from miniature.common import (
    Trainee,
    averaged_weights,
    generator,
    half_precision,
    progress,
    read_tensors,
    write_tensors,
)
from miniature.judge import augment, round_trip
from miniature.rendering import labels
from miniature.scenes import (
    COLORS,
    NOVEL_SHAPES,
    NOVEL_STYLES,
    OUTLINES,
    STYLES,
    Scene,
    draw_anywhere,
    with_shape,
)
from miniature.vae import to_pictures, to_tensor

BATCH = 16
WIDTHS = (16, 48, 96, 160)
TRIPS = 4  # one in this number of pictures goes through the autoencoder
ALL_STYLES = STYLES + NOVEL_STYLES
NOVEL_SHARE = 0.2  # of the scenes have an object that the base does not know
SEEN = 150  # pixels of a shape, from which on it is there
NOTHING = 0  # the class of the background; shapes follow in the order of `OUTLINES`


@dataclass(frozen=True)
class Reading:
    """Shapes, colors and styles in pictures.

    Attributes:
        shapes: (n, h, w), the index in `OUTLINES`, or −1.
        colors: (n, h, w), the index in `COLORS` of the shape's color.
        styles: (n,), the index in `ALL_STYLES`.
    """

    shapes: NDArray[np.int64]
    colors: NDArray[np.int64]
    styles: NDArray[np.int64]


class Reader(nn.Module):
    """A U-Net of four levels, the first at half the size.

    The lowest level says which shape is about, the highest where exactly something is, and of which
    color; all of them together give the style of the picture.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTHS[0], 5, stride=2, padding=2)
        self.down = nn.ModuleList()
        before = WIDTHS[0]
        for width in WIDTHS:
            self.down.append(_block(before, width))
            before = width
        self.up = nn.ModuleList(
            _block(deep + flat, flat)
            for deep, flat in zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True)
        )
        self.kinds = nn.Conv2d(WIDTHS[-1], len(OUTLINES), 1)
        self.head = nn.Conv2d(WIDTHS[0], 1 + len(COLORS), 1)
        self.whole = nn.Linear(sum(WIDTHS) + WIDTHS[0], len(ALL_STYLES))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of shapes (n, 18, h, w), colors (n, 12, h, w) and styles (n, 7).

        Images are in −1..1.
        """
        kept: list[Tensor] = []
        x = self.stem(images)
        for level, block in enumerate(self.down):
            x = block(functional.avg_pool2d(x, 2) if level else x)
            kept.append(x)
        for block, skip in zip(self.up, kept[-2::-1], strict=True):
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([x, skip], 1))
        size = images.shape[2:]
        kinds, fine = (
            functional.interpolate(logits, size, mode="bilinear")
            for logits in (self.kinds(kept[-1]), self.head(x))
        )
        nothing, colors = fine.split([1, len(COLORS)], 1)
        shapes = torch.cat([nothing, kinds], 1)
        styles = self.whole(torch.cat([level.mean((2, 3)) for level in (*kept, x)], 1))
        return shapes, colors, styles

    @torch.no_grad()
    def read(self, pictures: NDArray[np.uint8]) -> Reading:
        """Read pictures (n, h, w, 3)."""
        shapes: list[Tensor] = []
        colors: list[Tensor] = []
        styles: list[Tensor] = []
        for start in range(0, len(pictures), BATCH):
            found = self(to_tensor(pictures[start : start + BATCH]))
            for kind, logits in zip((shapes, colors, styles), found, strict=True):
                kind.append(logits.argmax(1))
        return Reading(
            torch.cat(shapes).numpy() - 1, torch.cat(colors).numpy(), torch.cat(styles).numpy()
        )


def _block(inner: int, outer: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inner, outer):
        layers += [nn.Conv2d(width, outer, 3, padding=1), nn.GroupNorm(8, outer), nn.SiLU()]
    return nn.Sequential(*layers)


def scene_of(seed: int) -> Scene:
    """The scene of a seed: of any style, with objects that the base knows or does not know."""
    rng = np.random.default_rng(seed)
    return _varied(draw_anywhere(rng, styles=ALL_STYLES), rng)


def held_out_scene(seed: int) -> Scene:
    """One of another combination than any that is trained on."""
    rng = np.random.default_rng(seed)
    return _varied(draw_anywhere(rng, held_out=True, styles=ALL_STYLES), rng)


def _varied(scene: Scene, rng: np.random.Generator) -> Scene:
    novel = tuple(NOVEL_SHAPES)[int(rng.integers(len(NOVEL_SHAPES)))]
    return with_shape(scene, novel, rng) if rng.random() < NOVEL_SHARE else scene


def truth(scene: Scene) -> Reading:
    """Return the correct reading of a scene's picture, with a batch axis of length one."""
    shapes = labels(scene)[None]
    names = list(OUTLINES)
    colors = np.zeros_like(shapes)
    for item in scene.objects:
        colors[shapes == names.index(item.shape)] = list(COLORS).index(item.color)
    return Reading(shapes, colors, np.asarray([ALL_STYLES.index(scene.style)]))


def in_bytes(reading: Reading) -> list[NDArray[np.int8]]:
    """Shapes, colors and styles, an eighth as large."""
    return [v.astype(np.int8) for v in (reading.shapes, reading.colors, reading.styles)]


def train(
    scenes: list[Scene],
    pictures: NDArray[np.uint8],
    state: Path,
    *,
    steps: int,
    seed: int,
    vae: AutoencoderKL,
    batch_size: int = BATCH,
) -> None:
    """Train on renders (n, 128, 128, 3), one in `TRIPS` of them sent through the autoencoder."""
    torch.manual_seed(seed)
    reader = Reader()
    trainee = Trainee(reader, rate=2e-3, decay=0.995, weight_decay=0.02)
    pixels = traveled(pictures, vae, seed)
    truths = [in_bytes(truth(scene)) for scene in scenes]
    shapes, colors, styles = (
        torch.from_numpy(np.concatenate(parts)) for parts in zip(*truths, strict=True)
    )

    def loss(step: int) -> Tensor:
        draw = generator(seed, step)
        picks = torch.randint(len(pixels), (batch_size,), generator=draw)
        images = augment(to_tensor(pixels[picks.numpy()]), draw, shift=0)
        with half_precision():
            found = reader(images)
        wanted = shapes[picks].long() + 1
        there = wanted != NOTHING
        of_shapes = functional.cross_entropy(found[0].float(), wanted, reduction="none")
        of_colors = functional.cross_entropy(
            found[1].float(), colors[picks].long(), reduction="none"
        )
        of_styles = functional.cross_entropy(found[2].float(), styles[picks].long())
        # by themselves, or the background, being most of a picture, is all that the network learns
        of_objects = (of_shapes + of_colors)[there].mean()
        return of_objects + of_shapes[~there].mean() + of_styles

    trainee.train("reader", steps, loss, state)


def traveled(pictures: NDArray[np.uint8], vae: AutoencoderKL, seed: int) -> NDArray[np.uint8]:
    """Pictures (n, h, w, 3), one in `TRIPS` of them as the autoencoder gives it back."""
    pixels = pictures.copy()
    draw = generator(seed, -1)
    sent = np.arange(0, len(pixels), TRIPS)
    for n, _ in progress("round trips", 0, -(-len(sent) // BATCH), every=20):
        picks = sent[n * BATCH : (n + 1) * BATCH]
        pixels[picks] = to_pictures(round_trip(vae, to_tensor(pixels[picks]), draw))
    return pixels


def overlap(reading: Reading, scenes: Sequence[Scene]) -> NDArray[np.float64]:
    """IoU of each prompted object with where its scene has it, the mean over a picture's."""
    names = list(OUTLINES)
    found: list[float] = []
    for read, scene in zip(reading.shapes, scenes, strict=True):
        wanted = labels(scene)
        each = [
            ((read == n) & (wanted == n)).sum() / max(1, ((read == n) | (wanted == n)).sum())
            for n in (names.index(item.shape) for item in scene.objects)
        ]
        found.append(float(np.mean(each)))
    return np.asarray(found)


def colored(reading: Reading, scenes: Sequence[Scene]) -> float:
    """The share of objects of which most pixels, where the scene has them, are as prompted."""
    names, colors = list(OUTLINES), list(COLORS)
    right: list[bool] = []
    for shapes, seen, scene in zip(reading.shapes, reading.colors, scenes, strict=True):
        where = labels(scene)
        for item in scene.objects:
            there = seen[(where == names.index(item.shape)) & (shapes >= 0)]
            counts = np.bincount(there, minlength=len(colors))
            right.append(bool(len(there)) and counts.argmax() == colors.index(item.color))
    return float(np.mean(right))


def styled(reading: Reading, style: str) -> NDArray[np.bool_]:
    """Which pictures are of a style, (n,)."""
    return reading.styles == ALL_STYLES.index(style)


def shown(reading: Reading, shape: str) -> NDArray[np.bool_]:
    """Which pictures have an object of a shape, (n,)."""
    return (reading.shapes == list(OUTLINES).index(shape)).sum((1, 2)) >= SEEN


def save(state: Path, path: Path) -> None:
    """Write the averaged reader in fp16."""
    write_tensors(path, {k: v.half() for k, v in averaged_weights(state).items()})


def load(path: Path) -> Reader:
    """The reader that `save` wrote."""
    reader = Reader()
    reader.load_state_dict({k: v.float() for k, v in read_tensors(path).items()})
    return reader.eval()
