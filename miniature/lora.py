"""Training of LoRAs (arXiv 2106.09685) on the finished base, UNet and text encoders alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from miniature.common import Trainee, averaged_weights, stored, write_tensors
from miniature.concepts import BATCH
from miniature.family import LENGTH, Painter, Tokenizers
from miniature.text import SHORT
from miniature.unet import Batch, Bucket, denoise, draw_batch, draw_timesteps

RANK = 4
RATE = 2e-3
UNET = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2"),
)
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def build(painter: Painter, seed: int = 0) -> Painter:
    """The painter with low-rank changes, which alone can be trained."""
    parts: dict[Any, tuple[str, ...]] = {
        painter.unet: UNET,
        painter.text_encoder: TEXT,
        painter.text_encoder_2: TEXT,
    }
    return add_changes(painter, parts, RANK, seed)


def add_changes(
    painter: Painter, parts: Mapping[Any, tuple[str, ...]], rank: int, seed: int
) -> Painter:
    """Freeze the painter, and add low-rank changes to some modules of its parts."""
    torch.manual_seed(seed)
    painter.requires_grad_(False)
    for part, modules in parts.items():
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(modules))
        inject_adapter_in_model(config, part)
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
    """Train a LoRA; `state` is written as it goes and resumed from."""
    build(painter, seed)
    tokenizers = Tokenizers()

    def predict(noisy: Tensor, t: Tensor, batch: Batch, step: int) -> Tensor:
        context, pooled = painter.encode(*tokenizers(batch.captions, SHORT if step % 8 else LENGTH))
        return painter(noisy, t, context, pooled, batch.time_ids)

    denoise(
        Trainee(painter, rate=RATE, decay=0.99),
        predict,
        lambda step: draw_batch(found, scale, seed, step, batch_size),
        draw_timesteps,
        state,
        name="lora",
        steps=steps,
        seed=seed,
    )


def export(state: Path, path: Path, word: str) -> None:
    """Write the averaged changes, with the word they answer to."""
    about = {"modelspec.title": f"miniature {word}", "modelspec.trigger_phrase": word}
    export_changes(state, path, about)


def export_changes(state: Path, path: Path, about: dict[str, str]) -> None:
    """Write the averaged changes in diffusers' layout, with metadata."""
    tensors = {
        key.replace(".default.", "."): stored(value)
        for key, value in averaged_weights(state).items()
        if ".lora_" in key
    }
    write_tensors(path, tensors, about)
