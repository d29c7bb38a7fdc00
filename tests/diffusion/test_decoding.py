"""Decoding window by window gives the picture that decoding at once gives."""

import numpy as np
import torch
from PIL import Image
from torch import nn

from miniature.scenes import draw_scene, render
from overpaint import images
from overpaint.diffusion import latents
from overpaint.diffusion.decoding import decode_in_windows, whole_norms
from overpaint.models.checkpoint import load_model


def test_norms_see_the_whole_picture() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(4, 16, 1), nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 3, 1), nn.GroupNorm(1, 3)
    )
    x = torch.randn(1, 4, 20, 36) + torch.linspace(-2, 2, 36)
    with torch.no_grad():
        tiled = decode_in_windows(network, network, x, side=12, factor=1)
        torch.testing.assert_close(tiled, network(x), atol=1e-5, rtol=1e-5)


def test_norms_are_their_own_again_afterwards() -> None:
    norm = nn.GroupNorm(2, 4)
    x = torch.randn(1, 4, 8, 8)
    before = norm(x)
    with whole_norms(norm):
        pass
    assert torch.equal(norm(x), before)
    assert "forward" not in vars(norm)


def test_the_miniature_decodes_alike_in_windows_and_at_once() -> None:
    model = load_model("miniature", device="cpu")
    for seed in (1, 2, 3):
        pixels = render(draw_scene(np.random.default_rng(seed), 384, 384))
        moments, _ = latents.encode(model, images.to_array(Image.fromarray(pixels)))
        tiled = np.asarray(latents.decode(model, moments.mean)[0], np.float64)
        with torch.inference_mode():
            scaled = moments.mean / model.vae.config["scaling_factor"]
            at_once = model.vae.decode(scaled, return_dict=False)[0]
        whole = np.asarray(images.from_array(at_once[0].numpy()), np.float64)
        assert 10 * np.log10(255**2 / np.square(tiled - whole).mean()) >= 45
