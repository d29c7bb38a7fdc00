"""Training of the text encoders alone, before the UNet: from a caption to what its picture shows.

Which of two objects is on top is one bit, and worth next to nothing of the UNet's loss: trained by
that alone, the encoders learn the words and not their order. So, as CLIP's encoders come trained to
SDXL, these learn first to answer the judge's questions (`judge.HEADS`) from a caption: linear
heads read the pooled text and the last token of the context. The heads are thrown away.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .common import Trainee, averaged_weights, cosine, progress
from .family import HIDDEN, POOLED, TextEncoders, Tokenizers
from .judge import HEADS, IGNORED, labels
from .scenes import Scene, caption, draw_scene

BATCH = 64
RATE = 2e-3
SHORT = 28  # tokens that the longest caption fits in; the rest is padding
TESTS = 400


class Reader(TextEncoders):
    """The text encoders with a head on the last token and one on the pooled text."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        answers = sum(len(values) for values in HEADS.values())
        self.heads = nn.ModuleList(nn.Linear(width, answers) for width in (sum(HIDDEN), POOLED))

    def forward(self, ids: Tensor, ids_2: Tensor) -> list[Tensor]:
        """Logits [2, n, values] of every question."""
        context, pooled = self.encode(ids, ids_2)
        read = [functional.layer_norm(x, x.shape[-1:]) for x in (context[:, -1], pooled)]
        answers = torch.stack([head(x) for head, x in zip(self.heads, read, strict=True)])
        return list(answers.float().split([len(v) for v in HEADS.values()], -1))


def train(state: Path, *, steps: int, seed: int, start: dict[str, Tensor] | None = None) -> None:
    """Train on captions of fresh scenes, from the encoders' weights `start` if given."""
    reader = Reader(seed)
    if start is not None:
        reader.load_state_dict(start, strict=False)
    trainee = Trainee(reader, rate=RATE, decay=0.99)
    if state.exists():
        trainee.load(state)
    tokenizers = Tokenizers()
    smooth = 10.0
    for step, report in progress("text", trainee.step, steps, every=100):
        rng = np.random.default_rng((seed, step))
        scenes = [draw_scene(rng) for _ in range(BATCH)]
        ids = tokenizers([caption(s, rng, full=True) for s in scenes], SHORT)
        targets = labels(scenes)
        with torch.autocast("cpu", torch.bfloat16):
            answers = reader(*ids)
        losses = [
            functional.cross_entropy(
                part.flatten(0, 1), targets[:, i].repeat(len(part)), ignore_index=IGNORED
            )
            for i, part in enumerate(answers)
        ]
        loss = torch.stack(losses).sum()
        trainee.update(loss, cosine(step, steps))
        smooth = 0.98 * smooth + 0.02 * loss.item()
        if report:
            print(f"  loss {smooth:.4f}", flush=True)
            trainee.save(state)
    trainee.save(state)
    for name, share in accuracy(state).items():
        print(f"text {name:12} {share:.4f}", flush=True)


def weights(state: Path) -> dict[str, Tensor]:
    """The averaged encoders, keyed as in `family.Painter`."""
    averaged = averaged_weights(state)
    return {key: value for key, value in averaged.items() if not key.startswith("heads.")}


@torch.no_grad()
def accuracy(state: Path) -> dict[str, float]:
    """The share of held-out captions of which each question is answered right, last token first."""
    reader = Reader()
    reader.load_state_dict(averaged_weights(state))
    scenes: list[Scene] = []
    captions: list[str] = []
    for seed in range(TESTS):
        rng = np.random.default_rng(40_000_000 + seed)
        scenes.append(draw_scene(rng, held_out=True))
        captions.append(caption(scenes[-1], rng, full=True))
    asked = labels(scenes)
    shares: dict[str, float] = {}
    answers = reader(*Tokenizers()(captions, SHORT))
    for i, (name, part) in enumerate(zip(HEADS, answers, strict=True)):
        right = part.argmax(-1) == asked[:, i]
        for where, row in zip(("last", "pooled"), right, strict=True):
            shares[f"{name} {where}"] = float(row[asked[:, i] != IGNORED].float().mean())
    return shares
