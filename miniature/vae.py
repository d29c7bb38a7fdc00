"""The autoencoder: SDXL's kind (factor 8, four channels), trained on scenes alone.

The loss is L1 + MSE + L1 of the gradients, with a slight pull of the latents towards unit
variance; crops first, whole pictures for the last part, since group norm sees the whole.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from .common import Trainee, averaged_weights, cosine, generator, progress

CONFIG = {
    "block_out_channels": (16, 32, 64, 96),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "latent_channels": 4,
    "sample_size": 128,
}
KL_WEIGHT = 1e-4
WHOLE_SHARE = 0.3  # the last part of the steps, on whole pictures


def build(seed: int = 0) -> AutoencoderKL:
    """An untrained autoencoder."""
    torch.manual_seed(seed)
    return AutoencoderKL(**CONFIG)


def to_tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """(n, h, w, 3) in 0..255 to (n, 3, h, w) in −1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(images: Tensor) -> NDArray[np.uint8]:
    """(n, 3, h, w) in −1..1 to (n, h, w, 3) in 0..255."""
    levels = (images.clamp(-1, 1) + 1) * 127.5
    return levels.round().byte().permute(0, 2, 3, 1).numpy()


def _gradients(images: Tensor) -> tuple[Tensor, Tensor]:
    return images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]


def _batch(scenes: Tensor, seed: int, step: int, steps: int) -> Tensor:
    """Crops of 64 px for most steps, whole pictures for the last; (n, 3, s, s) in −1..1."""
    draw = generator(seed, step)
    whole = step >= steps * (1 - WHOLE_SHARE)
    size, count = (128, 5) if whole else (64, 16)
    picks = torch.randint(len(scenes), (count,), generator=draw)
    tops = torch.randint(0, (128 - size) // 4 + 1, (count, 2), generator=draw) * 4
    flips = torch.rand(count, generator=draw) < 0.5
    crops: list[Tensor] = []
    for pick, (top, left), flip in zip(picks, tops.tolist(), flips, strict=True):
        crop = scenes[pick, top : top + size, left : left + size]
        crops.append(crop.flip(1) if flip else crop)
    return torch.stack(crops).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def train(scenes: NDArray[np.uint8], state: Path, *, steps: int, seed: int) -> None:
    """Train on pictures (n, 128, 128, 3); `state` is written as it goes and resumed from."""
    vae = build(seed)
    trainee = Trainee(vae, rate=1.5e-3, decay=0.998)
    if state.exists():
        trainee.load(state)
    pictures = torch.from_numpy(scenes)
    total = error = 0.0
    for step, report in progress("vae", trainee.step, steps, every=100):
        x = _batch(pictures, seed, step, steps)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator(seed + 1, step))
            y = vae.decode((posterior.mean.float() + posterior.std.float() * noise)).sample
        y, mean, logvar = y.float(), posterior.mean.float(), posterior.logvar.float()
        mse = functional.mse_loss(y, x)
        edges = sum(
            functional.l1_loss(a, b) for a, b in zip(_gradients(y), _gradients(x), strict=True)
        )
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = functional.l1_loss(y, x) + 2 * mse + 0.5 * edges + KL_WEIGHT * kl
        trainee.update(loss, cosine(step, steps))
        total, error = 0.98 * total + 0.02 * float(loss), 0.98 * error + 0.02 * float(mse)
        if report:
            psnr = -10 * np.log10(max(error, 1e-9) / 4)
            print(f"  loss {total:.4f} psnr {psnr:.2f} kl {float(kl):.2f}", flush=True)
            trainee.save(state)
    trainee.save(state)


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The peak signal-to-noise ratio of each picture's round trip, in dB on 8-bit values."""
    ratios: list[float] = []
    for start in range(0, len(pictures), 20):
        part = pictures[start : start + 20]
        latents = vae.encode(to_tensor(part)).latent_dist.mean
        back = to_pictures(vae.decode(latents).sample)
        errors = np.square(back.astype(np.float64) - part).mean((1, 2, 3))
        ratios += list(10 * np.log10(255**2 / np.maximum(errors, 1e-6)))
    return np.asarray(ratios)


@torch.no_grad()
def finish(state: Path, pictures: NDArray[np.uint8], seed: int = 0) -> AutoencoderKL:
    """The averaged autoencoder, its latents made zero-mean per channel and their scale recorded.

    The channel means are folded into the last encoder and first decoder convolution (1×1, so the
    fold is exact); `scaling_factor` is then one over the latents' standard deviation.
    """
    vae = build(seed)
    vae.load_state_dict(averaged_weights(state))
    vae.eval()
    latents = torch.cat(
        [vae.encode(to_tensor(pictures[i : i + 20])).latent_dist.mean for i in range(0, 400, 20)]
    )
    means = latents.mean((0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.bias[:4] -= means
    post.bias += post.weight[:, :, 0, 0] @ means
    scale = 1.0 / float((latents - means[:, None, None]).std())
    vae.register_to_config(scaling_factor=scale)
    return vae
