"""A linear map from latents to small RGB previews."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LatentPreview:
    """A linear map from latents, in the scale of the UNet, to RGB in -1..1.

    Attributes:
        factors: The matrix, [latent channels][3].
        bias: The offset, [3].
    """

    factors: tuple[tuple[float, float, float], ...]
    bias: tuple[float, float, float] = (0.0, 0.0, 0.0)


SDXL_PREVIEW = LatentPreview(
    factors=(
        (0.3651, 0.4232, 0.4341),
        (-0.2533, -0.0042, 0.1068),
        (0.1076, 0.1111, -0.0362),
        (-0.3165, -0.2492, -0.2188),
    ),
    bias=(0.1084, -0.0175, -0.0011),
)
"""The published map for SDXL's VAE: github.com/comfyanonymous/ComfyUI, comfy/latent_formats.py."""
