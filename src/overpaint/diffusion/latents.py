"""Pictures to latents and back, through the VAE."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from overpaint.diffusion.tiling.vae import run_in_windows
from overpaint.errors import DeviceError
from overpaint.imaging import codec
from overpaint.models.model import Model

MIN_WINDOW_CELLS = 32
"""Side of a window that the VAE is given by itself, in cells: it looks far around each."""


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
def encode_pixels(model: Model, pixels: NDArray[np.float32]) -> tuple[Moments, str | None]:
    """The posterior of a picture, and a notice if it took a second try.

    Beyond twice the native side it is encoded in windows, which take no more memory than that.

    Args:
        model: whose VAE.
        pixels: [3, height, width] in -1..1; the sides are multiples of the VAE's factor.

    Raises:
        DeviceError: the latents are not finite, even in fp32.
    """
    vae: Any = model.vae

    def whole(part: Tensor) -> Tensor:
        seen = part.to(model.device, vae.dtype)
        return vae.encode(seen, return_dict=False)[0].parameters.float()

    def run() -> Tensor:
        batch = torch.from_numpy(pixels)[None]
        if side := _window(model, max(batch.shape[2:]) // model.vae_factor):
            return run_in_windows(vae, whole, batch, side=side, reads=model.vae_factor)
        return whole(batch)

    parameters, notice = _finite(model, run, "encoded")
    parameters = parameters.to(model.device)
    mean, log_variance = parameters.chunk(2, dim=1)
    scale: float = model.vae.config["scaling_factor"]
    std = torch.exp(0.5 * log_variance.clamp(-30, 20))
    return Moments(mean * scale, std * scale), notice


@torch.inference_mode()
def decode_latent(model: Model, latent: Tensor) -> tuple[Image, str | None]:
    """The picture of a latent [1, C, h, w], and a notice if it took a second try.

    A half-precision VAE can overflow, which would show as black: then it is run again in fp32.
    Beyond twice the native side it is decoded in windows, which take no more memory than that.

    Raises:
        DeviceError: the latent itself is not finite, or its picture is not even in fp32.
    """
    if not latent.isfinite().all():
        raise DeviceError(
            f"the network's result is not finite in {_name(model.dtype)}; choose another dtype, "
            "or its weights are damaged."
        )
    vae: Any = model.vae

    def whole(part: Tensor) -> Tensor:
        scaled = (part / vae.config["scaling_factor"]).to(model.device, vae.dtype)
        return vae.decode(scaled, return_dict=False)[0].float()

    def run() -> Tensor:
        if side := _window(model, max(latent.shape[2:])):
            return run_in_windows(vae, whole, latent, side=side, writes=model.vae_factor)
        return whole(latent)

    pixels, notice = _finite(model, run, "decoded")
    return codec.from_array(pixels[0].cpu().numpy()), notice


def _window(model: Model, cells: int) -> int:
    """The side of the VAE's windows over a picture of so many cells; 0 to see it at once."""
    native = model.native_size // model.vae_factor
    return max(native, MIN_WINDOW_CELLS) if cells > 2 * native else 0


def _finite(model: Model, run: Callable[[], Tensor], done: str) -> tuple[Tensor, str | None]:
    """Run the VAE, and if it overflows in half precision, again in fp32, with a notice.

    In fp32 for this once: the next picture must not depend on this one.
    """
    with model.vae_lock:
        return _finite_alone(model, run, done)


def _finite_alone(model: Model, run: Callable[[], Tensor], done: str) -> tuple[Tensor, str | None]:
    result, notice = run(), None
    vae: Any = model.vae
    dtype: torch.dtype = vae.dtype
    if dtype != torch.float32 and not result.isfinite().all():
        notice = f"the VAE overflowed in {_name(dtype)}; {done} again in fp32."
        vae.to(dtype=torch.float32)
        try:
            result = run()
        finally:
            vae.to(dtype=dtype)
    if not result.isfinite().all():
        raise DeviceError(
            f"what the VAE {done} is not finite even in fp32; its weights are damaged."
        )
    return result, notice


def preview_latent(model: Model, latent: Tensor) -> Image | None:
    """A cheap look at a latent [1, C, h, w]: by the small decoder or else the linear map.

    Returns:
        RGB; at the latent's own size for the linear map. None for a model that has neither.
    """
    if model.preview_decoder is not None:
        decoder = model.preview_decoder
        pixels = decoder.decode(latent.to(decoder.device, decoder.dtype), return_dict=False)[0]
        return codec.from_array(pixels[0].float().clamp(-1, 1).cpu().numpy())
    if model.preview is None:
        return None
    factors = np.array(model.preview.factors, dtype=np.float32)
    bias = np.array(model.preview.bias, dtype=np.float32)
    rgb = np.einsum("chw,cr->rhw", latent[0].float().cpu().numpy(), factors)
    return codec.from_array(rgb + bias[:, None, None])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
