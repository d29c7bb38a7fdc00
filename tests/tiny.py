"""A random SDXL for tests: SDXL's architecture with 1.6 million parameters.

`tiny_model` gives it as a `Model`, `tiny_folder` as a diffusers folder, `tiny_pipeline` as
diffusers' own pipeline over the same modules, for tests that compare with it.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from overpaint.models.family import FAMILIES
from overpaint.models.latent_preview import LatentPreview
from overpaint.models.model import Model, TextEncoder
from overpaint.models.noise_config import NoiseConfig, Prediction
from overpaint.nn.blocks import install_blocks

WIDTHS = (32, 48)
"""Widths of the two text encoders; the UNet's cross-attention width is their sum."""

POOLED = 40
"""Width of the second encoder's pooled output."""

TIME_IDS = 8
"""Width of the sinusoid of each of the six size ids."""

LATENT = 16
"""Side of the native latent; the VAE's factor is 8, so pictures are 128 px, as the miniature's."""

UNET: dict[str, Any] = {
    "sample_size": LATENT,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "transformer_layers_per_block": (1, 2),
    "attention_head_dim": (2, 4),
    "norm_num_groups": 16,
    "cross_attention_dim": sum(WIDTHS),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": TIME_IDS,
    "projection_class_embeddings_input_dim": POOLED + 6 * TIME_IDS,
}

VAE: dict[str, Any] = {
    "sample_size": 8 * LATENT,
    "block_out_channels": (8, 16, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "norm_num_groups": 8,
    "latent_channels": 4,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}

WORDS = (
    *("a", "an", "the", "of", "on", "in", "and", "above", "below", "left", "right", ",", "."),
    *("cat", "dog", "house", "tree", "star", "circle", "background"),
    *("red", "green", "blue", "yellow", "white", "black"),
    *("painting", "photo", "drawing", "sketch", "watercolor", "neon", "pixel", "art"),
)
"""Words with one token each; other text is split into bytes."""


def tiny_model(
    seed: int = 0,
    prediction: Prediction = "epsilon",
    *,
    zero_empty_negative: bool = False,
    overpaint_blocks: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Make a random checkpoint on the CPU; weights depend on the seed only.

    With `overpaint_blocks`, its UNet has Overpaint's blocks, like a loaded checkpoint. Otherwise it
    is an unchanged UNet of diffusers.
    """
    tokenizer, tokenizer_2 = tiny_tokenizer(), tiny_tokenizer(pad_token="!")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(_text_config(tokenizer, WIDTHS[0], "quick_gelu"))
        text_encoder_2 = CLIPTextModelWithProjection(_text_config(tokenizer_2, WIDTHS[1], "gelu"))
        unet = UNet2DConditionModel(**UNET)
        vae = AutoencoderKL(**VAE)
    for module in (text_encoder, text_encoder_2, unet, vae):
        nn.Module.to(module, dtype)  # diffusers' own warns
        module.eval().requires_grad_(False)
    if overpaint_blocks:
        install_blocks(unet)
    return Model(
        name="tiny",
        family=FAMILIES["miniature"],
        sha256=f"{seed:064x}",
        unet=unet,
        vae=vae,
        text_encoders=(
            TextEncoder(tokenizer, text_encoder),
            TextEncoder(tokenizer_2, text_encoder_2),
        ),
        noise=NoiseConfig(prediction=prediction),
        native_size=8 * LATENT,
        device=torch.device("cpu"),
        dtype=dtype,
        zero_empty_negative=zero_empty_negative,
        preview=LatentPreview(
            ((0.2, 0.1, 0.0), (0.1, 0.2, 0.1), (-0.1, 0.0, 0.2), (0.0, 0.1, -0.1))
        ),
    )


def _make_unet(seed: int, overpaint_blocks: bool, **config: Any) -> UNet2DConditionModel:
    """Make a random UNet like that of `tiny_model()`, but for some values of its config."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(**(UNET | config))
    unet.eval().requires_grad_(False)
    if overpaint_blocks:
        install_blocks(unet)
    return unet


def tiny_refiner(seed: int = 1, *, overpaint_blocks: bool = True) -> Model:
    """Make a random refiner for `tiny_model()`: one text encoder, five size ids."""
    base = tiny_model(overpaint_blocks=False)
    second = base.text_encoders[1]
    unet = _make_unet(
        seed,
        overpaint_blocks,
        cross_attention_dim=WIDTHS[1],
        projection_class_embeddings_input_dim=POOLED + 5 * TIME_IDS,
    )
    family = FAMILIES["miniature-refiner"]
    return replace(base, name="tiny-refiner", family=family, unet=unet, text_encoders=(second,))


def tiny_inpainter(seed: int = 2, *, overpaint_blocks: bool = True) -> Model:
    """Make a random inpainting model for latents of `tiny_model()`, with nine input channels."""
    base = tiny_model(overpaint_blocks=False)
    unet = _make_unet(seed, overpaint_blocks, in_channels=9)
    family = FAMILIES["miniature-inpaint"]
    return replace(base, name="tiny-inpainter", family=family, unet=unet)


def tiny_lcm(seed: int = 3, *, overpaint_blocks: bool = True) -> Model:
    """Make a random model whose UNet takes the guidance scale as an input, as LCM-SDXL's does."""
    base = tiny_model(overpaint_blocks=False)
    unet = _make_unet(seed, overpaint_blocks, time_cond_proj_dim=16)
    return replace(base, name="tiny-consistency", unet=unet)


def share_model(make: Callable[..., Model] = tiny_model, *, overpaint_blocks: bool = True) -> Model:
    """Return a model of `make` with modules that tests share, since each takes 0.1 s to make.

    These tests must not change the weights. The model's cache is its own.
    """
    return replace(_make_once(make, overpaint_blocks))


@cache
def _make_once(make: Callable[..., Model], overpaint_blocks: bool) -> Model:
    return make(overpaint_blocks=overpaint_blocks)


def tiny_folder(
    path: Path,
    seed: int = 0,
    prediction: Prediction = "epsilon",
    *,
    zero_empty_negative: bool = False,
) -> Path:
    """Write the checkpoint of `tiny_model` as a diffusers folder."""
    model = tiny_model(
        seed, prediction, zero_empty_negative=zero_empty_negative, overpaint_blocks=False
    )
    tiny_pipeline(model).save_pretrained(path, safe_serialization=True)
    for folder, encoder in zip(("tokenizer", "tokenizer_2"), model.text_encoders, strict=True):
        encoder.tokenizer.backend_tokenizer.model.save(str(path / folder))
        (path / folder / "tokenizer.json").unlink()
    return path


def tiny_pipeline(model: Model) -> StableDiffusionXLPipeline:
    """Make diffusers' text-to-image pipeline from the modules of a model with two encoders."""
    first, second = model.text_encoders
    scheduler = EulerDiscreteScheduler(
        beta_start=model.noise.beta_start,
        beta_end=model.noise.beta_end,
        beta_schedule=model.noise.beta_schedule,
        num_train_timesteps=model.noise.steps,
        prediction_type=model.noise.prediction,
        rescale_betas_zero_snr=model.noise.zero_terminal_snr,
        steps_offset=model.noise.steps_offset,
        timestep_spacing="leading",
    )
    parts: dict[str, Any] = {
        "vae": model.vae,
        "text_encoder": first.model,
        "text_encoder_2": second.model,
        "tokenizer": first.tokenizer,
        "tokenizer_2": second.tokenizer,
        "unet": model.unet,
        "scheduler": scheduler,
    }
    pipeline = StableDiffusionXLPipeline(
        **parts, force_zeros_for_empty_prompt=model.zero_empty_negative, add_watermarker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """Make a CLIP tokenizer in CLIP's order: bytes, bytes that end a word, merges, BOS, EOS."""
    letters = _byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        for known in merges:
            parts = _merged(parts, known)
        while len(parts) > 1:
            merges[parts[0], parts[1]] = None
            parts = [parts[0] + parts[1], *parts[2:]]
            tokens.append(parts[0])
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    arguments: dict[str, Any] = {
        "vocab": {token: number for number, token in enumerate(tokens)},
        "merges": list(merges),
        "pad_token": pad_token,
        "model_max_length": 77,
    }
    return CLIPTokenizer(**arguments)


def _text_config(tokenizer: CLIPTokenizer, width: int, activation: str) -> CLIPTextConfig:
    special: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=4,
        num_attention_heads=4,
        projection_dim=POOLED,
        hidden_act=activation,
        **special,
    )


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """Join every adjacent `pair` in `parts`."""
    joined: list[str] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def _byte_letters() -> list[str]:
    """Return the printable letter of byte-level BPE for each byte, printable bytes first.

    The order of CLIP's vocabulary (github.com/openai/CLIP, `simple_tokenizer.py`), which makes
    "!" token 0.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(0x100 + k) for k in range(256 - len(printable))]
