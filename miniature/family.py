"""The miniature's networks: SDXL's wiring at a hundredth of its size, and its folder on disk."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from miniature.scenes import vocabulary

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
LENGTH = 77  # tokens of a prompt, begin and end included
POOLED = 96
HIDDEN = (64, 96)
TIME_IDS = 6


def bpe(words: tuple[str, ...]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's kind of vocabulary and merges in which each given word is one token.

    All 256 byte symbols are there, inside a word and at its end, so any text has tokens. Merges
    are appended word by word; one that comes later never acts on a word that is already whole.
    """
    # CLIP's order of byte symbols: printable first, so that "!" is 0
    printable = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
    rest = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(printable))
    symbols = [*printable, *rest]
    merges: list[tuple[str, str]] = []
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        pieces = _apply([*word[:-1], word[-1] + END_OF_WORD], ranks)
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            ranks[pair] = len(merges)
            merges.append(pair)
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    tokens = [*symbols, *(s + END_OF_WORD for s in symbols)]
    tokens += dict.fromkeys(a + b for a, b in merges)
    tokens = [*dict.fromkeys(tokens), BOS, EOS]
    return {token: i for i, token in enumerate(tokens)}, merges


def _apply(pieces: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Merge the best-ranked neighbors until none is left."""
    while len(pieces) > 1:
        pairs = list(itertools.pairwise(pieces))
        best = min(pairs, key=lambda p: ranks.get(p, len(ranks)))
        if best not in ranks:
            break
        at = pairs.index(best)
        pieces = [*pieces[:at], pieces[at] + pieces[at + 1], *pieces[at + 2 :]]
    return pieces


def tokenizer(pad: str = EOS) -> CLIPTokenizer:
    """The tokenizer of the first encoder; the second pads with `!` (id 0), as SDXL's does."""
    vocab, merges = bpe(vocabulary())
    # the stubs know merges as strings only, which tokenizers no longer takes
    pairs = cast(Any, merges)
    return CLIPTokenizer(vocab=vocab, merges=pairs, pad_token=pad, model_max_length=LENGTH)


def _text_config(hidden: int, layers: int, heads: int, activation: str) -> CLIPTextConfig:
    words = len(bpe(vocabulary())[0])
    return CLIPTextConfig(
        vocab_size=words,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=LENGTH,
        hidden_act=activation,
        projection_dim=POOLED,
        bos_token_id=words - 2,
        eos_token_id=words - 1,  # the real id: encoder 2 pools there
        pad_token_id=words - 1,
    )


def build_unet(**changes: Any) -> UNet2DConditionModel:
    """An untrained UNet for latents of 16 × 16: of 9.3 M parameters, but for changes of this."""
    config: dict[str, Any] = {
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (48, 96, 160),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "transformer_layers_per_block": (1, 1, 2),
        "attention_head_dim": (2, 3, 5),  # SDXL's reading: the number of heads
        "norm_num_groups": 16,
        "use_linear_projection": True,
        "cross_attention_dim": sum(HIDDEN),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": POOLED + TIME_IDS * 32,
    }
    unet = cast(UNet2DConditionModel, UNet2DConditionModel.from_config(config | changes))
    unet.set_attn_processor(AttnProcessor())  # torch's fused attention is slow backwards on a CPU
    return unet


class TextEncoders(nn.Module):
    """Both text encoders."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.text_encoder = CLIPTextModel(_text_config(HIDDEN[0], 3, 2, "quick_gelu"))
        self.text_encoder_2 = CLIPTextModelWithProjection(_text_config(HIDDEN[1], 4, 3, "gelu"))
        for encoder in (self.text_encoder, self.text_encoder_2):
            encoder.set_attn_implementation("eager")  # the fused one is slow backwards in bf16

    def encode(self, ids: Tensor, ids_2: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids (n, length) of each tokenizer to context (n, length, 160), pooled (n, 96).

        The context is both encoders' penultimate hidden states, the pooled text is the second
        encoder's `text_embeds`: SDXL's convention (Podell et al. 2023, section 2.1).
        """
        first = self.text_encoder(input_ids=ids, output_hidden_states=True)
        second = self.text_encoder_2(input_ids=ids_2, output_hidden_states=True)
        context = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
        return context, second.text_embeds


class Painter(TextEncoders):
    """The UNet and both text encoders, which are trained together."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.unet = build_unet()

    def forward(
        self, x: Tensor, timestep: Tensor, context: Tensor, pooled: Tensor, time_ids: Tensor
    ) -> Tensor:
        """The predicted noise (n, 4, h, w); `time_ids` (n, 6) stay fp32 into the sinusoid."""
        conditions = {"text_embeds": pooled, "time_ids": time_ids}
        return self.unet(x, timestep, context, added_cond_kwargs=conditions).sample


class Tokenizers:
    """Both tokenizers with a cache: text to ids (n, length)."""

    def __init__(self) -> None:
        self._pair = (tokenizer(), tokenizer("!"))
        self._cache: dict[str, tuple[list[int], list[int]]] = {}

    def add(self, tokens: list[str]) -> None:
        """Give each of some texts a separate token after all others."""
        for own in self._pair:
            own.add_tokens(tokens)

    def _ids(self, text: str) -> tuple[list[int], list[int]]:
        if text not in self._cache:
            first, second = (
                t(text, padding="max_length", truncation=True, max_length=LENGTH).input_ids
                for t in self._pair
            )
            self._cache[text] = (first, second)
        return self._cache[text]

    def __call__(self, texts: list[str], length: int = LENGTH) -> tuple[Tensor, Tensor]:
        """Ids for each encoder, cut to the first `length` positions."""
        pairs = [self._ids(t) for t in texts]
        first, second = (torch.tensor([p[i][:length] for p in pairs]) for i in range(2))
        return first, second


def noise_schedule() -> EulerDiscreteScheduler:
    """SDXL's: scaled linear, 1000 steps, epsilon prediction."""
    return EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=1,
        interpolation_type="linear",
    )


MODEL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.42.1",
    "force_zeros_for_empty_prompt": False,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


@dataclass(frozen=True)
class PreviewFactors:
    """A linear picture of scaled latents: rgb = latents · factors + bias, in −1..1."""

    factors: list[list[float]]
    bias: list[float]


def export(folder: Path, painter: Painter, vae: AutoencoderKL, preview: PreviewFactors) -> None:
    """Write the family as a diffusers folder, weights in fp16."""
    folder.mkdir(parents=True, exist_ok=True)
    modules = {
        "unet": painter.unet,
        "vae": vae,
        "text_encoder": painter.text_encoder,
        "text_encoder_2": painter.text_encoder_2,
    }
    for name, module in modules.items():
        for key, value in module.state_dict().items():
            if value.is_floating_point() and not torch.isfinite(value.half()).all():
                raise ValueError(f"{name}.{key} does not fit fp16")
        module.half().save_pretrained(folder / name)
        module.float()
    _write_tokenizer(folder / "tokenizer", EOS)
    _write_tokenizer(folder / "tokenizer_2", "!")
    noise_schedule().save_pretrained(folder / "scheduler")
    _write_json(folder / "model_index.json", MODEL_INDEX)
    _write_json(
        folder / "preview.json",
        {"latent_rgb_factors": preview.factors, "latent_rgb_bias": preview.bias},
    )


SECOND = {
    "inpaint": {**MODEL_INDEX, "_class_name": "StableDiffusionXLInpaintPipeline"},
    "refiner": {
        **MODEL_INDEX,
        "_class_name": "StableDiffusionXLImg2ImgPipeline",
        "requires_aesthetics_score": True,
        "text_encoder": [None, None],
        "tokenizer": [None, None],
    },
}
"""model_index.json of the further networks, which share the rest with the base family."""


def export_second(folder: Path, kind: str, unet: UNet2DConditionModel) -> None:
    """Write a further network as a folder that shares its other parts with `miniature`."""
    folder.mkdir(parents=True, exist_ok=True)
    unet.half().save_pretrained(folder / "unet")
    unet.float()
    _write_json(folder / "model_index.json", {**SECOND[kind], "_shares_with": "miniature"})


def _write_tokenizer(folder: Path, pad: str) -> None:
    """CLIP's classic files, which every version of transformers reads."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab, merges = bpe(vocabulary())
    _write_json(folder / "vocab.json", vocab)
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": pad}
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, **special},
    )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
