"""Pictures to latents and back, through the VAE."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from overpaint import images
from overpaint.errors import DeviceError

if TYPE_CHECKING:
    from PIL.Image import Image

    from overpaint.models.model import Model

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Moments:
    """The VAE's posterior of a picture, a diagonal Gaussian, as the UNet sees latents.

    Attributes:
        mean: [1, C, h, w], fp32.
        std: likewise.
    """

    mean: Tensor
    std: Tensor


@torch.inference_mode()
def encode(model: "Model", image: "Image") -> Moments:
    """The posterior of an RGB picture whose sides are multiples of the VAE's factor."""
    pixels = torch.from_numpy(images.to_array(image))[None]
    posterior = _vae_encode(model, pixels)
    if not posterior[0].isfinite().all() and model.vae.dtype != torch.float32:
        posterior = _in_fp32(model, lambda: _vae_encode(model, pixels))
    mean, log_variance = posterior
    scale: float = model.vae.config["scaling_factor"]
    return Moments(mean * scale, torch.exp(0.5 * log_variance.clamp(-30, 20)) * scale)


def _vae_encode(model: "Model", pixels: Tensor) -> tuple[Tensor, Tensor]:
    pixels = pixels.to(model.device, model.vae.dtype)
    posterior = model.vae.encode(pixels, return_dict=False)[0]
    mean, log_variance = posterior.parameters.float().chunk(2, dim=1)
    return mean, log_variance


@torch.inference_mode()
def decode(model: "Model", latent: Tensor) -> tuple["Image", str | None]:
    """The picture of a latent [1, C, h, w], and a notice if it took a second try.

    A half-precision VAE can overflow, which would show as black: then it is run again in fp32.

    Raises:
        DeviceError: the latent itself is not finite, or its picture is not even in fp32.
    """
    if not latent.isfinite().all():
        raise DeviceError(
            f"the network's result is not finite in {_name(model.dtype)}; "
            "choose another dtype (bf16 or fp32)."
        )
    notice = None
    pixels = _vae_decode(model, latent)
    if not pixels.isfinite().all() and model.vae.dtype != torch.float32:
        notice = f"the VAE overflowed in {_name(model.vae.dtype)}; decoded again in fp32."
        pixels = _in_fp32(model, lambda: _vae_decode(model, latent))
    if not pixels.isfinite().all():
        raise DeviceError("the VAE's picture is not finite even in fp32; its weights are damaged.")
    return images.from_array(pixels[0].cpu().numpy()), notice


def _vae_decode(model: "Model", latent: Tensor) -> Tensor:
    vae: Any = model.vae
    latent = (latent / vae.config["scaling_factor"]).to(model.device, vae.dtype)
    return vae.decode(latent, return_dict=False)[0].float()


def _in_fp32(model: "Model", run: Callable[[], T]) -> T:
    """Run something with the VAE in fp32 for this once: the next picture must not depend on it."""
    vae: Any = model.vae
    dtype = vae.dtype
    vae.to(dtype=torch.float32)
    try:
        return run()
    finally:
        vae.to(dtype=dtype)


def preview(model: "Model", latent: Tensor) -> "Image | None":
    """A cheap look at a latent [1, C, h, w]: by the small decoder or else the linear map.

    Returns:
        RGB; at the latent's own size for the linear map. None for a model that has neither.
    """
    if model.preview_decoder is not None:
        decoder = model.preview_decoder
        pixels = decoder.decode(latent.to(decoder.device, decoder.dtype), return_dict=False)[0]
        return images.from_array(pixels[0].float().clamp(-1, 1).cpu().numpy())
    if model.preview is None:
        return None
    factors = np.array(model.preview.factors, dtype=np.float32)
    bias = np.array(model.preview.bias, dtype=np.float32)
    rgb = np.einsum("chw,cr->rhw", latent[0].float().cpu().numpy(), factors)
    return images.from_array(rgb + bias[:, None, None])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
