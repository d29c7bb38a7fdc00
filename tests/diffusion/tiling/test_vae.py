"""The VAE in windows gives the result of one run on the whole picture."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from miniature.rendering import render
from miniature.scenes import draw_scene
from overpaint.diffusion import latents
from overpaint.diffusion.tiling.vae import run_in_windows, share_layers
from overpaint.imaging import codec
from overpaint.models.checkpoint import load_model


def test_norms_in_windows_use_the_whole_picture() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(4, 16, 1), nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 3, 1), nn.GroupNorm(1, 3)
    )
    x = torch.randn(1, 4, 20, 36) + torch.linspace(-2, 2, 36)
    with torch.no_grad():
        tiled = run_in_windows(network, network, x, device=x.device, side=12)
        torch.testing.assert_close(tiled, network(x), atol=1e-5, rtol=1e-5)


def test_norms_after_sharing_have_their_own_forward() -> None:
    norm = nn.GroupNorm(2, 4)
    x = torch.randn(1, 4, 8, 8)
    before = norm(x)
    with share_layers(norm, 8, 8):
        pass
    assert torch.equal(norm(x), before)
    assert "forward" not in vars(norm)


def psnr(a: NDArray[Any], b: NDArray[Any], peak: float) -> float:
    return float(10 * np.log10(peak**2 / np.square(a - b).mean()))


# The second picture is mostly one flat color, so that a window has other statistics than the whole.
@pytest.mark.parametrize("seed", [1, 40_900_001])
def test_vae_of_the_miniature_in_windows_matches_the_whole(seed: int) -> None:
    model = load_model("miniature", device="cpu")
    pixels = codec.to_array(
        Image.fromarray(render(draw_scene(np.random.default_rng(seed), 384, 384)))
    )
    scale = model.vae.config["scaling_factor"]
    moments, _ = latents.encode_pixels(model, pixels)
    with torch.inference_mode():
        posterior = model.vae.encode(torch.from_numpy(pixels)[None], return_dict=False)[0]
        at_once = model.vae.decode(moments.mean / scale, return_dict=False)[0][0]
    mean = (scale * posterior.mean).numpy()
    assert psnr(moments.mean.numpy(), mean, float(np.ptp(mean))) >= 45
    tiled = np.asarray(latents.decode_latent(model, moments.mean)[0], np.float64)
    assert psnr(tiled, np.asarray(codec.from_array(at_once.numpy()), np.float64), 255) >= 45
