"""The autoencoder: SDXL's kind (factor 8, four channels), trained on scenes alone.

The loss is L1 + MSE + log MSE + L1 of the gradients and of the colors of 4 × 4 px, with a slight
pull of the latents towards unit variance; crops first, whole pictures for the last part, since
group norm sees the whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from miniature.common import Trainee, averaged_weights, generator, half_precision

CONFIG = {
    "block_out_channels": (24, 32, 64, 96),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "latent_channels": 4,
    "sample_size": 128,
}
KL_WEIGHT = 1e-4
RATIO_WEIGHT = 0.03  # of each picture's log MSE, so that plain pictures count as much as busy ones
BATCH = 16  # crops of 64 px in a step
WHOLE_SHARE = 0.3  # the last part of the steps, on whole pictures


def build(seed: int = 0) -> AutoencoderKL:
    """An untrained autoencoder."""
    torch.manual_seed(seed)
    return cast(AutoencoderKL, AutoencoderKL.from_config(CONFIG))


def encode(vae: AutoencoderKL, images: Tensor) -> DiagonalGaussianDistribution:
    """The latents' distribution, (n, 4, h/8, w/8), of images (n, 3, h, w) in −1..1."""
    return cast(Any, vae).encode(images).latent_dist


def moments(vae: AutoencoderKL, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of many pictures' posteriors, a few at a time; fp16."""
    with half_precision():
        found = [encode(vae, part) for part in pixels.split(16)]
    return torch.cat([m.mean for m in found]).half(), torch.cat([m.std for m in found]).half()


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """The images of latents that are not scaled."""
    return cast(Any, vae).decode(latents).sample


def scaling(vae: AutoencoderKL) -> float:
    """Return the factor that scales latents for the UNet."""
    return float(vae.config["scaling_factor"])


def to_tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """(n, h, w, 3) in 0..255 to (n, 3, h, w) in −1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(images: Tensor) -> NDArray[np.uint8]:
    """(n, 3, h, w) in −1..1 to (n, h, w, 3) in 0..255."""
    levels = (images.clamp(-1, 1) + 1) * 127.5
    return levels.round().byte().permute(0, 2, 3, 1).numpy()


def _gradients(images: Tensor) -> tuple[Tensor, Tensor]:
    return images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]


def _batch(scenes: Tensor, seed: int, step: int, whole: bool, batch_size: int) -> Tensor:
    """Some crops of 64 px, or a quarter as many whole pictures; (n, 3, s, s) in −1..1."""
    draw = generator(seed, step)
    size, count = (128, max(1, batch_size // 4)) if whole else (64, batch_size)
    picks = torch.randint(len(scenes), (count,), generator=draw)
    tops = torch.randint(0, (128 - size) // 4 + 1, (count, 2), generator=draw) * 4
    flips = torch.rand(count, generator=draw) < 0.5
    crops: list[Tensor] = []
    for pick, (top, left), flip in zip(picks, tops.tolist(), flips, strict=True):
        crop = scenes[pick, top : top + size, left : left + size]
        crops.append(crop.flip(1) if flip else crop)
    return torch.stack(crops).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def picture_loss(y: Tensor, x: Tensor) -> Tensor:
    """The mean difference of pictures (n, 3, h, w) in −1..1: of values, edges and tints."""
    errors = functional.mse_loss(y, x, reduction="none").mean((1, 2, 3))
    edges = torch.stack(
        [functional.l1_loss(a, b) for a, b in zip(_gradients(y), _gradients(x), strict=True)]
    ).sum()
    tints = functional.l1_loss(functional.avg_pool2d(y, 4), functional.avg_pool2d(x, 4))
    ratio = errors.clamp(min=1e-5).log().mean()
    return functional.l1_loss(y, x) + tints + 2 * errors.mean() + 0.5 * edges + RATIO_WEIGHT * ratio


def _divergence(posterior: DiagonalGaussianDistribution) -> Tensor:
    """The Kullback-Leibler divergence of the latents from unit Gaussians."""
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def train(
    scenes: NDArray[np.uint8],
    state: Path,
    *,
    steps: int,
    seed: int,
    batch_size: int = BATCH,
    rate: float = 1.5e-3,
    whole_share: float = WHOLE_SHARE,
    start: dict[str, Tensor] | None = None,
) -> None:
    """Train on pictures (n, 128, 128, 3); `state` is written as it goes and resumed from.

    With `start`, weights to begin with, the encoder is frozen and the decoder alone is trained:
    the latents stay the same, so this may follow (or run beside) the UNet's training.
    """
    vae = build(seed)
    if start is not None:
        vae.load_state_dict(start)
        vae.encoder.requires_grad_(False)
        cast(nn.Conv2d, vae.quant_conv).requires_grad_(False)
    # torch's fused attention is slow backwards in bf16 on a CPU
    vae.set_attn_processor(AttnProcessor())
    trainee = Trainee(vae, rate=rate, decay=0.998)
    pictures = torch.from_numpy(scenes)

    def loss(step: int) -> Tensor:
        x = _batch(pictures, seed, step, step >= steps * (1 - whole_share), batch_size)
        with half_precision():
            with torch.set_grad_enabled(start is None):
                posterior = encode(vae, x)
            noise = torch.randn(posterior.mean.shape, generator=generator(seed + 1, step))
            y = decode(vae, posterior.mean.float() + posterior.std.float() * noise)
        return picture_loss(y.float(), x) + KL_WEIGHT * _divergence(posterior)

    trainee.train("vae", steps, loss, state)


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The peak signal-to-noise ratio of each picture's round trip, in dB on 8-bit values."""
    ratios: list[float] = []
    for start in range(0, len(pictures), 20):
        part = pictures[start : start + 20]
        latents = encode(vae, to_tensor(part)).mean
        back = to_pictures(decode(vae, latents))
        errors = np.square(back.astype(np.float64) - part).mean((1, 2, 3))
        ratios += list(10 * np.log10(255**2 / np.maximum(errors, 1e-6)))
    return np.asarray(ratios)


@torch.no_grad()
def finish(state: Path, pictures: NDArray[np.uint8], seed: int = 0) -> AutoencoderKL:
    """The averaged autoencoder, each latent channel brought to zero mean and unit variance.

    Means and deviations over `pictures` are folded into the encoder's last and the decoder's first
    convolution (both 1 × 1, so the fold is exact); `scaling_factor` is computed from what remains.
    """
    vae = build(seed)
    vae.load_state_dict(averaged_weights(state))
    vae.eval()
    latents = torch.cat(
        [encode(vae, to_tensor(pictures[i : i + 20])).mean for i in range(0, len(pictures), 20)]
    )
    means, stds = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    quant, post = cast(nn.Conv2d, vae.quant_conv), cast(nn.Conv2d, vae.post_quant_conv)
    if quant.bias is None or post.bias is None:
        raise ValueError("both quantization convolutions must have a bias to fold into")
    post.bias += post.weight[:, :, 0, 0] @ means
    post.weight *= stds[None, :, None, None]
    quant.bias[:4] = (quant.bias[:4] - means) / stds
    quant.weight[:4] /= stds[:, None, None, None]
    quant.bias[4:] -= 2 * stds.log()
    scale = 1.0 / float(((latents - means[:, None, None]) / stds[:, None, None]).std())
    vae.register_to_config(scaling_factor=scale)
    return vae
