"""Training of a learned word (textual inversion, arXiv 2208.01618): vectors, and nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from miniature.common import Trainee, averaged_weights, write_tensors
from miniature.concepts import BATCH, TOY
from miniature.family import LENGTH, Painter, Tokenizers
from miniature.unet import Batch, Bucket, denoise, draw_batch, draw_timesteps

VECTORS = 2
RATE = 2e-2
START = "object"  # the word whose vector the new ones begin at
SPREAD = 0.01
TOKENS = [f"<toy-{i}>" for i in range(VECTORS)]
KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


class Learned(nn.Module):
    """A table of token embeddings with further rows, which alone can be trained."""

    def __init__(self, table: Tensor, start: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table, requires_grad=False)
        self.vectors = nn.Parameter(start)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (n, length) to vectors (n, length, width)."""
        return functional.embedding(ids, torch.cat([self.table, self.vectors]))


def build(painter: Painter, tokenizers: Tokenizers, seed: int = 0) -> Painter:
    """The painter with the word's tokens behind its vocabulary."""
    start = int(tokenizers([START])[0][0, 1])
    tokenizers.add(TOKENS)
    painter.requires_grad_(False)
    torch.manual_seed(seed)
    for encoder in (painter.text_encoder, painter.text_encoder_2):
        table = cast(Tensor, cast(Any, encoder.get_input_embeddings()).weight).detach()
        rows = table[start] + SPREAD * torch.randn(VECTORS, table.shape[1])
        encoder.set_input_embeddings(Learned(table, rows))
    return painter


def train(
    found: list[Bucket],
    scale: float,
    painter: Painter,
    state: Path,
    *,
    steps: int,
    seed: int,
    batch_size: int = BATCH,
) -> None:
    """Train the word; `state` is written as it goes and resumed from."""
    tokenizers = Tokenizers()
    build(painter, tokenizers, seed)

    def batch(step: int) -> Batch:
        drawn = draw_batch(found, scale, seed, step, batch_size)
        said = [text.replace(" ".join(TOY), "".join(TOKENS)) for text in drawn.captions]
        return dataclasses.replace(drawn, captions=said)

    def predict(noisy: Tensor, t: Tensor, drawn: Batch, step: int) -> Tensor:
        del step
        context, pooled = painter.encode(*tokenizers(drawn.captions, LENGTH))
        return painter(noisy, t, context, pooled, drawn.time_ids)

    denoise(
        Trainee(painter, rate=RATE, decay=0.98, weight_decay=0.0),
        predict,
        batch,
        draw_timesteps,
        state,
        name="word",
        steps=steps,
        seed=seed,
    )


def export(state: Path, path: Path) -> None:
    """Write the averaged vectors in kohya's and A1111's layout."""
    vectors = {
        KEYS[key.split(".")[0]]: value
        for key, value in averaged_weights(state).items()
        if key.endswith(".vectors")
    }
    write_tensors(path, vectors)
