"""Tiny decoders: TAESD's wiring (github.com/madebyollin/taesd, taesd.py), as in TAESDXL.

A tiny decoder makes pictures from the latents of a model at a small part of the VAE's cost, with
less detail. It has no encoder and no statistics over the picture.

| layout | keys |
|---|---|
| diffusers' AutoencoderTiny, a folder or a file | `decoder.layers.0.weight` |
| the original decoder, a file | `1.weight`; its clamp counts as layer 0 |
"""

import re
from collections.abc import Mapping

import torch
from diffusers.models.autoencoders.vae import DecoderTiny

from overpaint.errors import CheckpointError
from overpaint.models.diffusers_folder import open_part_folder
from overpaint.models.files.digests import compute_sha256
from overpaint.models.files.lazy_tensor import LazyTensor
from overpaint.models.files.safetensors_io import fill_module, open_weights, sample_keys
from overpaint.models.model import Model, TinyDecoder
from overpaint.models.separate_parts import PartPath

DIFFUSERS_PREFIX = "decoder.layers."


def load_tiny_decoder(file: PartPath, model: Model) -> TinyDecoder:
    """Load a tiny decoder for a model, onto its device and in its dtype.

    Raises:
        CheckpointError: The file is damaged, or has no tiny decoder for the latents of the model.
    """
    if file.path.is_dir():
        tensors, files = open_part_folder(file.path, half=model.dtype != torch.float32)
    else:
        weights = open_weights(file.path)
        tensors, files = weights.tensors, [file.path]
    layers = _unify_keys(tensors)
    try:
        module = _build_module(layers)
    except (KeyError, IndexError) as error:
        keys = sample_keys(tensors)
        raise CheckpointError(f"{file.path} is not a tiny decoder; its keys are {keys}") from error
    channels: int = layers["0.weight"].shape[1]
    factor = 2 ** sum(isinstance(layer, torch.nn.Upsample) for layer in module.layers)
    if (channels, factor) != (model.vae.config["latent_channels"], model.vae_factor):
        raise CheckpointError(
            f"{file.path} decodes latents of {channels} channels to {factor} x {factor} pixels a "
            f"cell, and {model.name} has {model.vae.config['latent_channels']} channels and "
            f"{model.vae_factor} x {model.vae_factor} pixels. Choose a decoder for SDXL."
        )
    stored = {f"layers.{key}": tensor for key, tensor in layers.items()}
    fill_module(
        module, stored, part="tiny decoder", device=model.device, dtype=model.dtype,
        channels_last=True,
    )  # fmt: skip
    sha256 = "" if model.device.type == "meta" else compute_sha256(tuple(files))
    return TinyDecoder(file.name, sha256, module)


def _unify_keys(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return the decoder's tensors by "<layer>.<name>", as diffusers counts the layers."""
    diffusers = {
        key.removeprefix(DIFFUSERS_PREFIX): tensor
        for key, tensor in tensors.items()
        if key.startswith(DIFFUSERS_PREFIX)
    }
    if diffusers:
        return diffusers
    original = (re.fullmatch(r"(\d+)\.(.+)", key) for key in tensors)
    return {f"{int(key[1]) - 1}.{key[2]}": tensors[key[0]] for key in original if key}


def _build_module(layers: Mapping[str, LazyTensor]) -> DecoderTiny:
    """Build the module on the meta device; the keys tell the number of blocks of each size.

    Layers 0 and 1 are a convolution and its activation. Then, for each size, come blocks, an
    upsampling but for the last size, and a convolution.
    """
    blocks: list[int] = []
    channels: list[int] = []
    last = max(int(key.split(".")[0]) for key in layers)
    layer = 2
    while layer <= last:
        count = 0
        while f"{layer}.conv.0.weight" in layers:
            count += 1
            layer += 1
        convolution = layer if layer == last else layer + 1
        channels.append(layers[f"{convolution}.weight"].shape[1])
        blocks.append(count)
        layer = convolution + 1
    with torch.device("meta"):
        return DecoderTiny(
            in_channels=layers["0.weight"].shape[1],
            out_channels=3,
            num_blocks=tuple(blocks),
            block_out_channels=tuple(channels),
            upsampling_scaling_factor=2,
            act_fn="relu",
            upsample_fn="nearest",
        )
