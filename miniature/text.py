"""Training of the text encoders alone, before the UNet: from a caption to what its picture shows.

Which of two objects is on top is one bit, and worth next to nothing of the UNet's loss: trained by
that alone, the encoders learn the words and not their order. So, as CLIP's encoders come trained to
SDXL, these learn first to answer questions about a caption, by linear heads that are thrown away:
the judge's (`judge.HEADS`), from the last token of the context and from the pooled text; and where
the object is that is named second, from the tokens of its color and its noun. (The first one's
cannot know: CLIP's attention looks back only.)

The heads compare directions and their scale is fixed, so that an answer must turn the token by a
good part, which a UNet can see, and not by a trace, which only a head of large weights can.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from miniature.common import Trainee, averaged_weights, half_precision
from miniature.family import HIDDEN, POOLED, TextEncoders, Tokenizers
from miniature.judge import HEADS, IGNORED, labels, loss_of, shares
from miniature.scenes import Scene, caption, draw_scene

BATCH = 64
RATE = 2e-3
SCALE = 16.0  # of the heads' cosines
SMOOTHING = 0.1  # of the right answers: none need turn a token by more than a quarter
SHORT = 28  # tokens that the longest caption fits in; the rest is padding
TESTS = 400  # held-out captions
PLACES = ("left", "right", "top", "bottom")
ANSWERS = sum(len(values) for values in HEADS.values())
QUESTIONS = {
    f"{name}, {where}": len(values)
    for where in ("last token", "pooled")
    for name, values in HEADS.items()
} | {f"place, second {word}": len(PLACES) for word in ("color", "noun")}
"""How many answers each question has."""


@dataclass(frozen=True)
class Lesson:
    """Captions, and what should be read in them.

    Attributes:
        ids: (n, length) of each encoder's tokenizer.
        second: the position of the second noun's token, (n,); or of the end token.
        answers: (n, questions); `IGNORED` without an answer.
    """

    ids: tuple[Tensor, Tensor]
    second: Tensor
    answers: Tensor


def draw_lesson(
    rng: np.random.Generator, count: int, tokenizers: Tokenizers, *, held_out: bool = False
) -> Lesson:
    """Captions of fresh scenes that leave nothing out."""
    scenes = [draw_scene(rng, held_out=held_out) for _ in range(count)]
    captions = [caption(scene, rng, full=True) for scene in scenes]
    ids = tokenizers(captions, SHORT)
    nouns = [second_noun(*pair) for pair in zip(scenes, captions, strict=True)]
    words = tokenizers([noun for noun, _ in nouns], 2)[0][:, 1:]  # behind the begin token
    places = torch.tensor([[PLACES.index(p) if p else IGNORED] for _, p in nouns])
    asked = labels(scenes)
    second = (ids[0] == words).int().argmax(1)
    return Lesson(ids, second, torch.cat([asked, asked, places, places], 1))


def second_noun(scene: Scene, text: str) -> tuple[str, str]:
    """The shape that a caption names second and its place; empty where there is but one object."""
    if scene.relation is None:
        return "", ""
    named = sorted(scene.objects, key=lambda item: text.index(item.shape))
    pair = PLACES[2:] if scene.relation in ("above", "below") else PLACES[:2]
    return named[1].shape, pair[scene.ordered.index(named[1])]


class Reader(TextEncoders):
    """The text encoders with the heads that question them."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.last = Compass(sum(HIDDEN), ANSWERS)
        self.pooled = Compass(POOLED, ANSWERS)
        self.place = Compass(sum(HIDDEN), len(PLACES))

    def forward(self, lesson: Lesson) -> list[Tensor]:
        """Logits (n, answers) for each of `QUESTIONS`."""
        context, pooled = self.encode(*lesson.ids)
        every = torch.arange(len(context))
        color, noun = context[every, lesson.second - 1], context[every, lesson.second]
        logits = [self.last(context[:, -1]), self.pooled(pooled), self.place(color)]
        logits.append(self.place(noun))
        return list(torch.cat(logits, -1).split(list(QUESTIONS.values()), -1))


class Compass(nn.Module):
    """A linear head on directions: logits are scaled cosines."""

    def __init__(self, width: int, answers: int) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.randn(answers, width))

    def forward(self, x: Tensor) -> Tensor:
        """x (n, width) to logits (n, answers)."""
        x, directions = (functional.normalize(v.float(), dim=-1) for v in (x, self.directions))
        return SCALE * functional.linear(x, directions)


def train(
    state: Path, *, steps: int, seed: int, batch_size: int = BATCH, tests: int = TESTS
) -> None:
    """Train on captions of fresh scenes; `state` is written as it goes and resumed from."""
    reader = Reader(seed)
    trainee = Trainee(reader, rate=RATE, decay=0.99)
    tokenizers = Tokenizers()

    def loss(step: int) -> Tensor:
        lesson = draw_lesson(np.random.default_rng((seed, step)), batch_size, tokenizers)
        with half_precision():
            logits = reader(lesson)
        return loss_of(logits, lesson.answers, SMOOTHING)

    trainee.train("text", steps, loss, state)
    for question, share in accuracy(state, tests).items():
        print(f"text {question:22} {share:.4f}", flush=True)


def weights(state: Path) -> dict[str, Tensor]:
    """The averaged encoders, keyed as in `family.Painter`."""
    averaged = averaged_weights(state)
    return {key: value for key, value in averaged.items() if key.startswith("text_encoder")}


@torch.no_grad()
def accuracy(state: Path, tests: int = TESTS) -> dict[str, float]:
    """Return for each question the share of held-out captions with the right answer."""
    reader = Reader()
    reader.load_state_dict(averaged_weights(state))
    lesson = draw_lesson(np.random.default_rng(4), tests, Tokenizers(), held_out=True)
    return dict(zip(QUESTIONS, shares(reader(lesson), lesson.answers), strict=True))
