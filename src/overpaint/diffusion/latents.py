"""Encode pictures to latents and decode latents to pictures, with the VAE."""

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
from overpaint.models.model import Model, TinyDecoder
from overpaint.nn.host import copy_to_host

MIN_WINDOW_CELLS = 32
"""The smallest side of a VAE window, in latent cells; the VAE has a large receptive field."""


@dataclass(frozen=True, eq=False)
class Moments:
    """The VAE's posterior of a picture: a diagonal Gaussian, in the UNet's scale.

    Attributes:
        mean: [1, C, h, w], fp32.
        std: [1, C, h, w], fp32.
    """

    mean: Tensor
    std: Tensor


@torch.inference_mode()
def encode_pixels(model: Model, pixels: NDArray[np.float32]) -> tuple[Moments, str | None]:
    """Return the posterior of a picture, and a notice if the VAE ran a second time in fp32.

    If a side is longer than twice the model's native side, the VAE runs in windows, which bounds
    its memory.

    Args:
        model: its VAE encodes.
        pixels: [3, height, width] in -1..1; the sides are multiples of the VAE's factor.

    Raises:
        DeviceError: the latents are not finite in fp32.
    """
    vae: Any = model.vae

    def whole(part: Tensor) -> Tensor:
        window = part.to(model.device, vae.dtype)
        return vae.encode(window, return_dict=False)[0].parameters.float()

    def run() -> Tensor:
        batch = torch.from_numpy(pixels)[None]
        if side := _window_side(model, max(batch.shape[2:]) // model.vae_factor):
            return run_in_windows(
                vae, whole, batch, device=model.device, side=side, reads=model.vae_factor
            )
        return whole(batch)

    parameters, notice = _run_finite(model, run, "encoded")
    parameters = parameters.to(model.device)
    mean, log_variance = parameters.chunk(2, dim=1)
    scale: float = model.vae.config["scaling_factor"]
    std = torch.exp(0.5 * log_variance.clamp(-30, 20))
    return Moments(mean * scale, std * scale), notice


@torch.inference_mode()
def decode_latent(model: Model, latent: Tensor) -> tuple[Image, str | None]:
    """Return the picture of a latent [1, C, h, w], and a notice if the VAE ran a second time.

    A half-precision VAE can overflow, which gives a black picture. It then runs again in fp32. If
    a side is longer than twice the model's native side, the VAE runs in windows, which bounds its
    memory.

    Raises:
        DeviceError: the latent is not finite, or its picture is not finite in fp32.
    """
    pixels, notice = decode_pixels(model, latent)
    return codec.from_array(copy_to_host(pixels[0]).numpy()), notice


@torch.inference_mode()
def decode_pixels(model: Model, latent: Tensor) -> tuple[Tensor, str | None]:
    """Return the pixels [1, 3, height, width] of a latent as fp32; see `decode_latent`."""
    if not _is_finite(latent):
        raise DeviceError(
            f"The network's result is not finite in {_dtype_name(model.dtype)}. Choose another "
            "dtype; if that does not help, the weights are damaged."
        )
    vae: Any = model.vae

    def whole(part: Tensor) -> Tensor:
        scaled = (part / vae.config["scaling_factor"]).to(model.device, vae.dtype)
        return vae.decode(scaled, return_dict=False)[0].float()

    return _run_finite(model, lambda: _decode_windows(model, vae, whole, latent), "decoded")


def _decode_windows(
    model: Model, module: torch.nn.Module, decode: Callable[[Tensor], Tensor], latent: Tensor
) -> Tensor:
    """Decode a latent at once, or in windows if it is large."""
    side = _window_side(model, max(latent.shape[2:]))
    if not side:
        return decode(latent)
    factor = model.vae_factor
    return run_in_windows(module, decode, latent, device=model.device, side=side, writes=factor)


def _window_side(model: Model, cells: int) -> int:
    """Return the side of the VAE's windows for a picture of `cells` cells a side; 0 for none."""
    native = model.native_size // model.vae_factor
    return max(native, MIN_WINDOW_CELLS) if cells > 2 * native else 0


def _run_finite(model: Model, run: Callable[[], Tensor], done: str) -> tuple[Tensor, str | None]:
    """Run the VAE; if it overflows in half precision, run it again in fp32 and return a notice.

    The VAE returns to its dtype afterward, so that the next picture does not depend on this one.
    """
    with model.vae_lock:
        return _run_finite_locked(model, run, done)


def _run_finite_locked(
    model: Model, run: Callable[[], Tensor], done: str
) -> tuple[Tensor, str | None]:
    result, notice = run(), None
    vae: Any = model.vae
    dtype: torch.dtype = vae.dtype
    if dtype != torch.float32 and not _is_finite(result):
        notice = f"the VAE overflowed in {_dtype_name(dtype)}; {done} again in fp32."
        with model.vae_in_dtype(torch.float32):
            result = run()
    if not _is_finite(result):
        raise DeviceError(
            f"The VAE {done} a result that is not finite, also in fp32. Its weights are damaged."
        )
    return result, notice


@torch.inference_mode()
def decode_tiny(model: Model, decoder: TinyDecoder, latent: Tensor) -> Image:
    """Return the picture that a tiny decoder makes of a latent [1, C, h, w].

    Raises:
        DeviceError: the latent or its picture is not finite.
    """
    pixels = _decode_windows(model, decoder.module, decoder.decode, latent)
    if not _is_finite(latent) or not _is_finite(pixels):
        raise DeviceError(
            f"The latent, or the picture that the decoder {decoder.name} makes of it, is not "
            f"finite in {_dtype_name(model.dtype)}. Choose another dtype, or no decoder."
        )
    return codec.from_array(copy_to_host(pixels[0]).numpy())


@torch.inference_mode()
def preview_latent(model: Model, decoder: TinyDecoder | None, latent: Tensor) -> Image | None:
    """Return a cheap preview of a latent [1, C, h, w].

    The tiny decoder makes it, or else the model's linear map.

    Returns:
        RGB; the linear map gives one pixel per latent cell. None if there is neither.
    """
    if decoder:
        return codec.from_array(copy_to_host(decoder.decode(latent)[0]).numpy())
    if model.preview is None:
        return None
    factors = np.array(model.preview.factors, dtype=np.float32)
    bias = np.array(model.preview.bias, dtype=np.float32)
    rgb = np.einsum("chw,cr->rhw", copy_to_host(latent[0].float()).numpy(), factors)
    return codec.from_array(rgb + bias[:, None, None])


def _is_finite(values: Tensor) -> bool:
    """Return whether all values are finite; True on the meta device, which has none."""
    return values.is_meta or bool(values.isfinite().all())


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
