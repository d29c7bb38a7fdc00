"""Families of checkpoints that Overpaint supports, and their configs."""

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from overpaint.errors import CheckpointError
from overpaint.models.latent_preview import SDXL_PREVIEW, LatentPreview

SDXL_LICENSE = "CreativeML Open RAIL++-M (use restrictions of its attachment A apply)"


@dataclass(frozen=True)
class Family:
    """Checkpoints with the same architecture.

    Attributes:
        name: The name in messages and metadata.
        native_size: The side in pixels of the training pictures, if the config does not have it.
        in_channels: Input channels of the UNet: 4, or 9 for an inpainting UNet.
        context_width: The width of the UNet's cross-attention; None accepts any width.
        text_encoders: The number of text encoders.
        license: The license of the published weights; a fine-tune can add terms.
        tiny_decoder: The name of the tiny decoder for the latents.
        preview: The linear map for previews, if one is published for the VAE.
        paints: Whether the family makes pictures without another model.
        has_aesthetic_score: Whether the last size id is an aesthetic score (refiner).
    """

    name: str
    native_size: int
    in_channels: int
    context_width: int | None
    text_encoders: int
    license: str
    tiny_decoder: str
    preview: LatentPreview | None = None
    paints: bool = True
    has_aesthetic_score: bool = False

    @property
    def sees_mask(self) -> bool:
        """True if the UNet takes a mask and the masked picture beside the noisy latent."""
        return self.in_channels == 9


FAMILIES: dict[str, Family] = {
    row.name: row
    for row in (
        Family("sdxl", 1024, 4, 2048, 2, SDXL_LICENSE, "taesdxl", SDXL_PREVIEW),
        Family("sdxl-inpaint", 1024, 9, 2048, 2, SDXL_LICENSE, "taesdxl", SDXL_PREVIEW),
        Family(
            "sdxl-refiner",
            1024,
            4,
            1280,
            1,
            SDXL_LICENSE,
            "taesdxl",
            SDXL_PREVIEW,
            paints=False,
            has_aesthetic_score=True,
        ),
        Family("miniature", 128, 4, None, 2, "Apache-2.0", "miniature-tiny"),
        Family("miniature-inpaint", 128, 9, None, 2, "Apache-2.0", "miniature-tiny"),
        Family(
            "miniature-refiner",
            128,
            4,
            None,
            1,
            "Apache-2.0",
            "miniature-tiny",
            paints=False,
            has_aesthetic_score=True,
        ),
    )
}

OTHER_MODELS_BY_WIDTH: dict[int, str] = {768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2"}
"""Unsupported models by the cross-attention width of their UNet."""


def recognize_family(unet: dict[str, Any], text_encoders: int) -> Family:
    """Find the family of a UNet config.

    Args:
        unet: The config of a diffusers UNet2DConditionModel.
        text_encoders: The number of text encoders in the checkpoint.

    Raises:
        CheckpointError: The checkpoint belongs to no supported family.
    """
    context, channels = unet.get("cross_attention_dim"), unet.get("in_channels", 4)
    if unet.get("addition_embed_type") != "text_time":
        other = OTHER_MODELS_BY_WIDTH.get(context) if isinstance(context, int) else None
        raise CheckpointError(
            f"This is a {other or 'UNet'} checkpoint "
            f"(cross-attention width {context}, no size ids); Overpaint runs SDXL"
        )
    for family in FAMILIES.values():
        wiring = (family.in_channels, family.text_encoders)
        if wiring == (channels, text_encoders) and family.context_width in (context, None):
            return family
    raise CheckpointError(
        f"A UNet of {channels} input channels, cross-attention width {context} and "
        f"{text_encoders} text encoder(s) belongs to no family that Overpaint runs: "
        f"{', '.join(FAMILIES)}"
    )


@dataclass(frozen=True)
class Configs:
    """The configs of a checkpoint, in the formats of diffusers and transformers.

    Attributes:
        unet: The config of UNet2DConditionModel.
        vae: The config of AutoencoderKL.
        text_encoders: A CLIPTextConfig for each part, "text_encoder" and "text_encoder_2".
        scheduler: The config of a diffusers scheduler.
        model_index: The pipeline's model_index.json.
    """

    unet: dict[str, Any]
    vae: dict[str, Any]
    text_encoders: dict[str, dict[str, Any]]
    scheduler: dict[str, Any]
    model_index: dict[str, Any]

    @property
    def family(self) -> Family:
        """The family of the checkpoint.

        Raises:
            CheckpointError: The checkpoint belongs to no supported family.
        """
        return recognize_family(self.unet, len(self.text_encoders))


def shipped_configs(name: str) -> Configs:
    """Read the packaged configs of a full-size family.

    They come from stabilityai/stable-diffusion-xl-base-1.0 and -refiner-1.0, and
    diffusers/stable-diffusion-xl-1.0-inpainting-0.1, without the defaults of the classes that read
    them. They correct `eos_token_id` of the second text encoder from 2 to CLIP's 49407.

    Args:
        name: "sdxl", "sdxl-inpaint" or "sdxl-refiner".
    """
    text = (files("overpaint") / "data" / "configs" / f"{name}.json").read_text()
    return parse_configs(json.loads(text))


def parse_configs(parts: dict[str, dict[str, Any]]) -> Configs:
    """Make Configs from the JSON objects of the parts."""
    return Configs(
        unet=parts["unet"],
        vae=parts["vae"],
        text_encoders={n: parts[n] for n in ("text_encoder", "text_encoder_2") if n in parts},
        scheduler=parts["scheduler"],
        model_index=parts["model_index"],
    )
