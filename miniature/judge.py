"""The judge: a small network, trained on rendered scenes alone, that reads pictures back.

It never sees a picture that a model painted. It trains on renders, some of them shifted,
mirrored, blurred, noisy or sent through the autoencoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from miniature.common import Trainee, generator, half_precision, read_tensors, write_tensors
from miniature.scenes import BACKGROUNDS, COLORS, SHAPES, STYLES, Scene
from miniature.vae import decode, encode, scaling, to_tensor

HEADS: dict[str, tuple[str, ...]] = {
    "style": STYLES,
    "background": BACKGROUNDS,
    "layout": ("one", "beside", "stacked"),
    "shape_1": tuple(SHAPES),
    "color_1": tuple(COLORS),
    "shape_2": tuple(SHAPES),
    "color_2": tuple(COLORS),
}
BATCH = 64
IGNORED = -1  # the label of a second object that is not there


@dataclass(frozen=True)
class Verdict:
    """The judge's reading: `objects` are (color, shape) from left to right or top to bottom."""

    style: str
    background: str
    layout: str
    objects: tuple[tuple[str, str], ...]


def truth(scene: Scene) -> Verdict:
    """Return the correct reading of a scene's picture."""
    layout = "one"
    if scene.relation is not None:
        layout = "stacked" if scene.relation in ("above", "below") else "beside"
    objects = tuple((o.color, o.shape) for o in scene.ordered)
    return Verdict(scene.style, scene.background, layout, objects)


def labels(scenes: list[Scene]) -> Tensor:
    """The right answer to every question, (n, questions); `IGNORED` without an answer."""
    return torch.tensor([_labels(scene) for scene in scenes])


def _labels(scene: Scene) -> list[int]:
    verdict = truth(scene)
    names = [verdict.style, verdict.background, verdict.layout]
    for color, shape in verdict.objects:
        names += [shape, color]
    known = [values.index(name) for values, name in zip(HEADS.values(), names, strict=False)]
    return known + [IGNORED] * (len(HEADS) - len(known))


def loss_of(logits: list[Tensor], answers: Tensor, smoothing: float = 0.0) -> Tensor:
    """The sum over the questions, of logits (n, values) of each and answers (n, questions)."""
    losses = [
        functional.cross_entropy(
            part.float(), answers[:, i], ignore_index=IGNORED, label_smoothing=smoothing
        )
        for i, part in enumerate(logits)
    ]
    return torch.stack(losses).sum()


def shares(logits: list[Tensor], answers: Tensor) -> list[float]:
    """The share of each question's answers that is right, where there is one."""
    picks = torch.stack([part.argmax(-1) for part in logits], 1)
    asked = answers != IGNORED
    return (((picks == answers) & asked).sum(0) / asked.sum(0)).tolist()


class Judge(nn.Module):
    """Strided convolutions to a 4 × 4 map, one hidden layer, one linear head per question.

    What the style is shows in the texture as well, wherever it is and however faint: a second row
    of convolutions looks for that alone.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (24, 48, 96, 128, 96)
        layers: list[nn.Module] = []
        before = 3
        for width in widths:
            layers += [nn.Conv2d(before, width, 3, stride=2, padding=1)]
            layers += [nn.GroupNorm(8, width), nn.SiLU()]
            before = width
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.hidden = nn.Linear(16 * before, 256)
        self.heads = nn.Linear(256, sum(len(v) for v in HEADS.values()))
        self.texture = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, len(STYLES)),
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Logits of every head for images (n, 3, 128, 128) in −1..1."""
        hidden = functional.silu(self.hidden(self.features(images)))
        style, *others = self.heads(hidden).split([len(v) for v in HEADS.values()], -1)
        return [style + self.texture(_contrast(images)), *others]

    @torch.no_grad()
    def read(self, pictures: NDArray[np.uint8]) -> list[Verdict]:
        """Read pictures (n, 128, 128, 3)."""
        verdicts: list[Verdict] = []
        for start in range(0, len(pictures), BATCH):
            logits = self(to_tensor(pictures[start : start + BATCH]))
            picks = torch.stack([part.argmax(-1) for part in logits], 1).tolist()
            for row in picks:
                names = [v[i] for v, i in zip(HEADS.values(), row, strict=True)]
                style, background, layout, shape_1, color_1, shape_2, color_2 = names
                objects = ((color_1, shape_1), (color_2, shape_2))
                count = 1 if layout == "one" else 2
                verdicts.append(Verdict(style, background, layout, objects[:count]))
        return verdicts


def _contrast(images: Tensor) -> Tensor:
    """Each pixel's difference to the 5 × 5 around it, a faint one nearly as strong as any."""
    around = functional.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False)
    difference = images - around
    return difference / (difference.abs() + 0.05)


def _mirrored(answers: Tensor, flip: Tensor) -> Tensor:
    """Answers after a left-right flip of some pictures: objects side by side change places."""
    swap = flip & (answers[:, 2] == HEADS["layout"].index("beside"))
    return torch.where(swap[:, None], answers[:, [0, 1, 2, 5, 6, 3, 4]], answers)


def augment(images: Tensor, draw: torch.Generator, shift: int = 6) -> Tensor:
    """Shift by up to `shift` pixels, blur some, add noise to some; images (n, 3, h, w) in −1..1."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (shift,) * 4, mode="replicate")
    at = torch.randint(0, 2 * shift + 1, (count, 2), generator=draw).tolist()
    shifted = [padded[i, :, y : y + height, x : x + width] for i, (y, x) in enumerate(at)]
    images = torch.stack(shifted)
    images[: count // 4] = functional.avg_pool2d(
        images[: count // 4], 3, stride=1, padding=1, count_include_pad=False
    )
    noise = torch.randn(images.shape, generator=draw)
    strength = 0.06 * torch.rand(count, 1, 1, 1, generator=draw)
    tint = 0.04 * torch.randn(count, 3, 1, 1, generator=draw)
    return images + strength * noise + tint


def train(
    scenes: list[Scene],
    pictures: NDArray[np.uint8],
    state: Path,
    *,
    steps: int,
    seed: int,
    vae: AutoencoderKL | None = None,
    batch_size: int = BATCH,
) -> None:
    """Train on renders (n, 128, 128, 3); with a `vae`, an eighth of each batch goes through it."""
    torch.manual_seed(seed)
    judge = Judge()
    trainee = Trainee(judge, rate=2e-3, decay=0.998, weight_decay=0.02)
    answers = labels(scenes)

    def loss(step: int) -> Tensor:
        draw = generator(seed, step)
        picks = torch.randint(len(pictures), (batch_size,), generator=draw)
        flip = torch.rand(batch_size, generator=draw) < 0.5
        targets = _mirrored(answers[picks], flip)
        images = to_tensor(pictures[picks.numpy()])
        images = torch.where(flip[:, None, None, None], images.flip(3), images)
        images = augment(images, draw)
        if vae is not None:
            images[-batch_size // 8 :] = round_trip(vae, images[-batch_size // 8 :], draw)
        with half_precision():
            logits = judge(images)
        return loss_of(logits, targets)

    trainee.train("judge", steps, loss, state)


@torch.no_grad()
def round_trip(vae: AutoencoderKL, images: Tensor, draw: torch.Generator) -> Tensor:
    """Through the autoencoder, with some noise on the latents as an imperfect model leaves it."""
    with half_precision():
        latents = encode(vae, images).mean.float()
        spread = 0.15 * torch.rand(len(images), 1, 1, 1, generator=draw)
        noise = torch.randn(latents.shape, generator=draw) * spread / scaling(vae)
        return decode(vae, latents + noise).float()


def accuracy(judge: Judge, scenes: list[Scene], pictures: NDArray[np.uint8]) -> dict[str, float]:
    """The share of each head that is right; an absent second object is not asked for."""
    parts = [judge(to_tensor(pictures[i : i + 64])) for i in range(0, len(pictures), 64)]
    logits = [torch.cat(part) for part in zip(*parts, strict=True)]
    return dict(zip(HEADS, shares(logits, labels(scenes)), strict=True))


def save(state: Path, path: Path) -> None:
    """Write the averaged judge in fp16."""
    tensors = read_tensors(state)
    prefix = "averaged."
    kept = {k[len(prefix) :]: v.half() for k, v in tensors.items() if k.startswith(prefix)}
    write_tensors(path, kept)


def load(path: Path) -> Judge:
    """The judge that `save` wrote."""
    judge = Judge()
    judge.load_state_dict({k: v.float() for k, v in read_tensors(path).items()})
    return judge.eval()
