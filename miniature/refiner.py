"""Training of the refiner: SDXL's second network, for the last, least noisy fifth of the steps.

Its inputs are the second text encoder's output and five size ids. That encoder stays as the UNet's
training left it. The last id is an aesthetic score (Podell et al. 2023, section 2.5): `SHARP` means
a picture as rendered, `SOFT` a slightly smoothed one.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional

from miniature.common import Trainee
from miniature.family import HIDDEN, LENGTH, POOLED, TextEncoders, Tokenizers, build_unet
from miniature.text import SHORT
from miniature.unet import Batch, buckets, denoise, draw_batch

RATE = 1e-3
BATCH = 32
LAST = 250  # timesteps: somewhat more than the fifth that it is for
SHARP, SOFT = 6.0, 2.5  # SDXL's defaults for the prompt and the negative prompt
SOFT_SHARE = 1 / 6
SOFTNESS = 0.05  # of the smoothing: guidance multiplies what lies between the scores


def build(seed: int = 0) -> UNet2DConditionModel:
    """An untrained refiner of four levels, as SDXL's, for latents of 16 × 16."""
    torch.manual_seed(seed)
    down, attended = "DownBlock2D", "CrossAttnDownBlock2D"
    up, attended_up = "UpBlock2D", "CrossAttnUpBlock2D"
    return build_unet(
        block_out_channels=(32, 64, 96, 96),
        down_block_types=(down, attended, attended, down),
        up_block_types=(up, attended_up, attended_up, up),
        transformer_layers_per_block=1,
        attention_head_dim=(1, 2, 3, 3),
        cross_attention_dim=HIDDEN[1],
        projection_class_embeddings_input_dim=POOLED + 5 * 32,
    )


def train(
    folder: Path,
    scale: float,
    encoders: TextEncoders,
    state: Path,
    *,
    steps: int,
    seed: int,
    batch_size: int = BATCH,
) -> None:
    """Train on the encoded views of `folder`; `state` is written as it goes and resumed from."""
    unet = build(seed)
    trainee = Trainee(unet, rate=RATE, decay=0.998)
    found, tokenizers = buckets(folder), Tokenizers()
    encoders.requires_grad_(False)

    def predict(noisy: Tensor, t: Tensor, batch: Batch, step: int) -> Tensor:
        _, ids = tokenizers(batch.captions, SHORT if step % 8 else LENGTH)
        second = encoders.text_encoder_2(input_ids=ids, output_hidden_states=True)
        conditions = {"text_embeds": second.text_embeds, "time_ids": scored(batch)}
        context = second.hidden_states[-2]
        return unet(noisy, t, context, added_cond_kwargs=conditions).sample

    denoise(
        trainee,
        predict,
        lambda step: soften(draw_batch(found, scale, seed, step, batch_size)),
        lambda count, draw: torch.randint(LAST, (count,), generator=draw),
        state,
        name="refiner",
        steps=steps,
        seed=seed,
    )


def soften(batch: Batch) -> Batch:
    """The first of the pictures smoothed."""
    count = _soft(len(batch.latents))
    kernel = batch.latents.new_tensor([1.0, 2.0, 1.0]) / 4
    kernel = (kernel[:, None] * kernel).expand(4, 1, 3, 3)
    part = functional.pad(batch.latents[:count], (1, 1, 1, 1), mode="replicate")
    smooth = functional.conv2d(part, kernel, groups=4)
    soft = batch.latents[:count].lerp(smooth, SOFTNESS)
    return Batch(torch.cat([soft, batch.latents[count:]]), batch.views, batch.captions)


def scored(batch: Batch) -> Tensor:
    """Size ids (n, 5): original height and width, crop top and left, score."""
    ids = batch.time_ids[:, :5].clone()
    ids[:, 4] = SHARP
    ids[: _soft(len(ids)), 4] = SOFT
    return ids


def _soft(count: int) -> int:
    return round(count * SOFT_SHARE)
