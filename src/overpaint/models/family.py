"""The families of checkpoints that Overpaint runs: one row each."""

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from overpaint.errors import CheckpointError
from overpaint.models.latent_preview import SDXL_PREVIEW, LatentPreview

SDXL_LICENSE = "CreativeML Open RAIL++-M (use restrictions of its attachment A apply)"


@dataclass(frozen=True)
class Family:
    """Checkpoints of the same wiring.

    Attributes:
        name: as shown to users and stored in metadata.
        native_size: side in pixels of the square it was trained on, where its config is silent.
        in_channels: of the UNet: 4, or 9 where mask and masked picture are concatenated.
        context_width: width of the UNet's cross-attention; None where any other than those named.
        text_encoders: how many.
        license: of the published weights; a fine-tune may add terms of its own.
        preview: the linear map for previews, when one is published for its VAE.
        paints: whether it can paint a picture by itself.
        has_aesthetic_score: its last size ids are an aesthetic score, as the refiner's.
    """

    name: str
    native_size: int
    in_channels: int
    context_width: int | None
    text_encoders: int
    license: str
    preview: LatentPreview | None = None
    paints: bool = True
    has_aesthetic_score: bool = False

    @property
    def sees_mask(self) -> bool:
        """Whether the network takes a mask and the masked picture beside the noisy latent."""
        return self.in_channels == 9


FAMILIES: dict[str, Family] = {
    row.name: row
    for row in (
        Family("sdxl", 1024, 4, 2048, 2, SDXL_LICENSE, SDXL_PREVIEW),
        Family("sdxl-inpaint", 1024, 9, 2048, 2, SDXL_LICENSE, SDXL_PREVIEW),
        Family(
            "sdxl-refiner",
            1024,
            4,
            1280,
            1,
            SDXL_LICENSE,
            SDXL_PREVIEW,
            paints=False,
            has_aesthetic_score=True,
        ),
        Family("miniature", 128, 4, None, 2, "Apache-2.0"),
        Family("miniature-inpaint", 128, 9, None, 2, "Apache-2.0"),
        Family(
            "miniature-refiner",
            128,
            4,
            None,
            1,
            "Apache-2.0",
            paints=False,
            has_aesthetic_score=True,
        ),
    )
}

OTHER_MODELS_BY_WIDTH: dict[int, str] = {768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2"}
"""Cross-attention widths of UNets without size ids, which Overpaint does not run."""


def recognize_family(unet: dict[str, Any], text_encoders: int) -> Family:
    """The family of a UNet config.

    Args:
        unet: a diffusers UNet2DConditionModel config.
        text_encoders: how many come with it.

    Raises:
        CheckpointError: none of ours; says what it is, where that is known.
    """
    context, channels = unet.get("cross_attention_dim"), unet.get("in_channels", 4)
    if unet.get("addition_embed_type") != "text_time":
        other = OTHER_MODELS_BY_WIDTH.get(context) if isinstance(context, int) else None
        raise CheckpointError(
            f"this is a {other or 'UNet'} checkpoint "
            f"(cross-attention width {context}, no size ids); Overpaint runs SDXL"
        )
    for family in FAMILIES.values():
        wiring = (family.in_channels, family.text_encoders)
        if wiring == (channels, text_encoders) and family.context_width in (context, None):
            return family
    raise CheckpointError(
        f"a UNet of {channels} input channels, cross-attention width {context} and "
        f"{text_encoders} text encoder(s) belongs to no family that Overpaint runs: "
        f"{', '.join(FAMILIES)}"
    )


@dataclass(frozen=True)
class Configs:
    """The configs of a checkpoint, in diffusers' and transformers' words.

    Attributes:
        unet: of UNet2DConditionModel.
        vae: of AutoencoderKL.
        text_encoders: part name ("text_encoder", "text_encoder_2") to CLIPTextConfig.
        scheduler: a diffusers scheduler's.
        model_index: of the pipeline.
    """

    unet: dict[str, Any]
    vae: dict[str, Any]
    text_encoders: dict[str, dict[str, Any]]
    scheduler: dict[str, Any]
    model_index: dict[str, Any]

    @property
    def family(self) -> Family:
        """The row of the family table.

        Raises:
            CheckpointError: none of ours.
        """
        return recognize_family(self.unet, len(self.text_encoders))


def shipped_configs(name: str) -> Configs:
    """The configs of a full-size family, which ship with Overpaint.

    Transcribed from the model repositories stabilityai/stable-diffusion-xl-base-1.0 and
    -refiner-1.0 and diffusers/stable-diffusion-xl-1.0-inpainting-0.1, less what equals the
    defaults of the classes that read them, and with the text encoders' `eos_token_id` put right
    (there 2 in the second encoder; CLIP's is 49407).

    Args:
        name: "sdxl", "sdxl-inpaint" or "sdxl-refiner".
    """
    text = (files("overpaint") / "data" / "configs" / f"{name}.json").read_text()
    return parse_configs(json.loads(text))


def parse_configs(parts: dict[str, dict[str, Any]]) -> Configs:
    """Configs from a mapping of part names to their JSON objects."""
    return Configs(
        unet=parts["unet"],
        vae=parts["vae"],
        text_encoders={n: parts[n] for n in ("text_encoder", "text_encoder_2") if n in parts},
        scheduler=parts["scheduler"],
        model_index=parts["model_index"],
    )
