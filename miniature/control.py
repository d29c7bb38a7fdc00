"""Training of what steers the structure: control nets, a union net, a T2I-Adapter.

They learn from scenes whose objects are of any size and anywhere, which the caption does not say
and only the hint does. The UNet and the text encoders stay as they are.

* `canny` is a ControlNet of SDXL's "small" kind, without attention.
* `depth` and `segmentation` are Control-LoRAs: low-rank changes to a copy of the UNet's encoder.
* `union` knows all three, one or two at a time.
* `adapter` is a T2I-Adapter for soft edges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.adapter import T2IAdapter
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.controlnets.controlnet_union import ControlNetUnionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from miniature import vae as autoencoder
from miniature.common import (
    Trainee,
    averaged_weights,
    generator,
    progress,
    read_tensors,
    stored,
    write_tensors,
)
from miniature.data import View, rendered
from miniature.family import LENGTH, Painter, Tokenizers
from miniature.rendering import depth, labels
from miniature.scenes import Scene, caption, draw_anywhere, recolored
from miniature.text import SHORT
from miniature.unet import Batch, denoise
from overpaint.imaging.hints import drawing, edges
from overpaint.models.files.original_layout import to_original_name
from overpaint.nn.union_fuser import isolate_rows
from overpaint.registry import HINTS

SCENES = range(60_000_000, 60_012_000)
CHUNK = 3000
BATCH = 16
RATE = 1e-3
# How often pairs are drawn, and those that are the other way round than the base has them, against
# single objects: the prompt tells one object's shape; which of two is where, only the hint.
PAIRS, CONTRARY = 2.0, 3.0
DROPOUT = 0.4  # of the captions: with full captions, the net learns positions only
RANK = 8
KINDS = ("canny", "depth", "segmentation")
PLANES = (*KINDS, "softedge")
ELSEWHERE = 0.5  # of the edge images show the objects in another style and other colors
EDGES = ("canny", "softedge")
LOW_RANK = ("depth", "segmentation")
ALL = (*KINDS, "union", "adapter")
UNION_TYPES = 6
TWO_SHARE = 0.3  # of the union's steps have two hints
NAMES = {"adapter": "softedge"}  # what a net is called in the package, by the hint it follows
HINT_CHANNELS = (8, 16, 32, 48)
SMALL: dict[str, Any] = {
    "down_block_types": ("DownBlock2D",) * 3,
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": 1,
}


def config(unet: UNet2DConditionModel, **changes: Any) -> dict[str, Any]:
    """Return the config of a ControlNet for a UNet."""
    shared = (
        *("block_out_channels", "down_block_types", "layers_per_block", "norm_num_groups"),
        *("transformer_layers_per_block", "attention_head_dim", "use_linear_projection"),
        *("cross_attention_dim", "addition_embed_type", "addition_time_embed_dim"),
        "projection_class_embeddings_input_dim",
    )
    own = {key: unet.config[key] for key in shared}
    return own | {"conditioning_embedding_out_channels": HINT_CHANNELS} | changes


class LowRank(nn.Module):
    """A layer with a low-rank change: W + up · down."""

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        out, inner = layer.weight.shape[0], layer.weight.shape[1:]
        rank = min(RANK, out, inner.numel())
        self.down = nn.Parameter(torch.randn(rank, *inner) / inner.numel() ** 0.5)
        self.up = nn.Parameter(torch.zeros(out, rank, *(1 for _ in inner[1:])))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer with the low-rank change."""
        change = (self.up.flatten(1) @ self.down.flatten(1)).view_as(self.layer.weight)
        weight = self.layer.weight + change
        if isinstance(self.layer, nn.Conv2d):
            return nn.functional.conv2d(x, weight, self.bias, self.layer.stride, self.layer.padding)
        return nn.functional.linear(x, weight, self.bias)


def lowered(net: ControlNetModel) -> ControlNetModel:
    """The net, copied from a UNet, with low-rank changes as all that is trained of the copy."""
    copied = (net.conv_in, net.time_embedding, net.add_embedding, net.down_blocks, net.mid_block)
    for part in cast(tuple[nn.Module, ...], copied):
        part.requires_grad_(False)
        for module in list(part.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Conv2d | nn.Linear):
                    setattr(module, name, LowRank(child))
    net.conv_in = cast(Any, LowRank(net.conv_in))
    return net


def build(kind: str, unet: UNet2DConditionModel, seed: int = 0) -> nn.Module:
    """An untrained net of a kind."""
    torch.manual_seed(seed)
    if kind == "adapter":
        channels = list(unet.config["block_out_channels"])
        return T2IAdapter(3, [*channels, channels[-1]], 1, 16, "full_adapter_xl")
    if kind == "union":
        changes = {**SMALL, "num_control_type": UNION_TYPES, "num_trans_channel": 48}
        changes |= {"num_trans_head": 8, "num_proj_channel": 48}
        changes.pop("mid_block_type")
        union = ControlNetUnionModel(**config(unet, **changes))
        union.set_attn_processor(AttnProcessor())
        isolate_rows(union)
        return _started(union, unet)
    if kind == "canny":
        return _started(ControlNetModel(**config(unet, **SMALL)), unet)
    net = _started(ControlNetModel(**config(unet)), unet)
    net.set_attn_processor(AttnProcessor())
    return lowered(net)


def _started(net: Any, unet: UNet2DConditionModel) -> Any:
    """The net, with as much of the UNet's encoder as it has a place for."""
    source = unet.state_dict()
    own = net.state_dict()
    net.load_state_dict({k: source[k] if _same(k, own, source) else v for k, v in own.items()})
    return net


def _same(key: str, own: dict[str, Tensor], source: dict[str, Tensor]) -> bool:
    return key in source and source[key].shape == own[key].shape


def encode(vae: AutoencoderKL, folder: Path, scenes: range = SCENES) -> None:
    """Render the scenes of these seeds, and keep their latents and what hints are made of."""
    folder.mkdir(parents=True, exist_ok=True)
    firsts = scenes[::CHUNK]
    for n, _ in progress("hints", 0, len(firsts), every=1):
        path = folder / f"{firsts[n]}.safetensors"
        if path.exists():
            continue
        seeds = range(firsts[n], min(firsts[n] + CHUNK, scenes.stop))
        shown, pixels = rendered(scene_of, seeds)
        _, others = rendered(elsewhere, seeds)
        with torch.no_grad():
            mean, std = autoencoder.moments(vae, autoencoder.to_tensor(pixels))
        planes = np.stack([_planes(*seen) for seen in zip(shown, pixels, others, strict=True)])
        write_tensors(
            path,
            {
                "seed": torch.tensor(list(seeds)),
                "mean": mean,
                "std": std,
                "planes": torch.from_numpy(planes),
            },
        )


def scene_of(seed: int) -> Scene:
    """The scene of a seed."""
    return draw_anywhere(np.random.default_rng(seed))


def held_out_scene(seed: int) -> Scene:
    """One of another combination than any that is trained on."""
    return draw_anywhere(np.random.default_rng(seed), held_out=True)


def elsewhere(seed: int) -> Scene:
    """Return the scene of a seed with its objects in another style and other colors."""
    return recolored(np.random.default_rng((seed, 1)), scene_of(seed))


def _planes(scene: Scene, pixels: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the planes for `PLANES`, then the edges of `other`: (planes, h, w)."""
    edged, soft = _edges(pixels)
    return np.stack(
        [edged, depth(scene), (labels(scene) + 1).astype(np.uint8), soft, *_edges(other)]
    )


def _edges(pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    picture = Image.fromarray(pixels)
    return [np.asarray(find(picture))[..., 0] for find in (edges.canny, edges.softedge)]


def with_edges_from_elsewhere(planes: Tensor, chosen: Tensor) -> Tensor:
    """Planes (n, planes, h, w) as they are shown, where `chosen` (n,) with the other edges.

    A net that only ever sees the edges of the very picture it is to bring about, learns how each
    style wobbles, and paints other styles worse.
    """
    own = [PLANES.index(kind) for kind in EDGES]
    shown = planes[:, : len(PLANES)].clone()
    others = planes[:, len(PLANES) :]
    shown[:, own] = torch.where(chosen[:, None, None, None], others, shown[:, own])
    return shown


def hint(kind: str, planes: Tensor) -> Tensor:
    """Hints (n, 3, h, w) in 0..1 of planes (n, planes, h, w)."""
    plane = planes[:, PLANES.index(kind)]
    if kind != "segmentation":
        return (plane.float() / 255)[:, None].expand(-1, 3, -1, -1)
    colors = torch.from_numpy(drawing.make_miniature_palette().astype(np.float32)) / 255
    table = torch.cat([torch.zeros(1, 3), colors])
    return table[plane.long()].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Hinted(Batch):
    """Also what hints are made of (n, planes, h, w)."""

    planes: Tensor


def load(folder: Path) -> tuple[Tensor, Tensor, Tensor, list[View]]:
    """Latent means and deviations, planes, and views of all scenes."""
    files = [read_tensors(path) for path in sorted(folder.glob("*.safetensors"))]
    mean, std, planes = (torch.cat([f[k] for f in files]) for k in ("mean", "std", "planes"))
    seeds = torch.cat([f["seed"] for f in files]).tolist()
    scenes = [scene_of(seed) for seed in seeds]
    return mean, std, planes, [View(s, 0, 0, s.height, s.width) for s in scenes]


def share(scene: Scene) -> float:
    """How often a scene is drawn."""
    if len(scene.objects) == 1:
        return 1
    first, second = scene.objects
    across, down = second.x - first.x, second.y - first.y
    ahead = across if abs(across) > abs(down) else down
    return PAIRS if ahead > 0 else CONTRARY


def draw_timesteps(count: int, draw: torch.Generator) -> Tensor:
    """Timesteps (n,), most of them noisy, because early steps decide the layout.

    Cubic sampling (Mou et al. 2023, "T2I-Adapter", section 3.4): t = (1 − u³) · T.
    """
    return (999 * (1 - torch.rand(count, generator=draw) ** 3)).round().long()


def train(
    kind: str,
    folder: Path,
    scale: float,
    painter: Painter,
    state: Path,
    *,
    steps: int,
    seed: int,
    batch_size: int = BATCH,
) -> None:
    """Train one net; `state` is written as it goes and resumed from."""
    net = build(kind, painter.unet, seed)
    trainee = Trainee(net, rate=RATE, decay=0.998)
    mean, std, planes, views = load(folder)
    shares = torch.tensor([share(view.scene) for view in views])
    tokenizers = Tokenizers()
    painter.requires_grad_(False)

    def batch(step: int) -> Hinted:
        draw = generator(seed, step)
        rng = np.random.default_rng((seed, step))
        picks = torch.multinomial(shares, batch_size, replacement=True, generator=draw)
        noise = torch.randn((batch_size, *mean.shape[1:]), generator=draw)
        latents = scale * (mean[picks].float() + std[picks].float() * noise)
        seen = [views[i] for i in picks.tolist()]
        captions = ["" if rng.random() < DROPOUT else caption(v.scene, rng) for v in seen]
        chosen = torch.rand(batch_size, generator=draw) < ELSEWHERE
        return Hinted(latents, seen, captions, with_edges_from_elsewhere(planes[picks], chosen))

    def predict(noisy: Tensor, t: Tensor, drawn: Batch, step: int) -> Tensor:
        context, pooled = painter.encode(*tokenizers(drawn.captions, SHORT if step % 8 else LENGTH))
        added = {"text_embeds": pooled, "time_ids": drawn.time_ids}
        residuals = RESIDUALS.get(kind, single)(
            kind, net, (noisy, t, context, added), cast(Hinted, drawn).planes, step
        )
        return painter.unet(noisy, t, context, added_cond_kwargs=added, **residuals).sample

    denoise(trainee, predict, batch, draw_timesteps, state, name=kind, steps=steps, seed=seed)


def export(kind: str, state: Path, unet: UNet2DConditionModel, path: Path) -> None:
    """Write a trained net's averaged weights; a Control-LoRA's in Stability's layout."""
    net = build(kind, unet)
    tensors = averaged_weights(state)
    net.load_state_dict(tensors)
    if kind in LOW_RANK:
        tensors = _low_rank(net, unet)
    write_tensors(path, {key: stored(value) for key, value in tensors.items()})


def _low_rank(net: nn.Module, unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """Return the low-rank changes, and all other tensors that differ from the UNet."""
    layers = int(unet.config["layers_per_block"])
    found = {"lora_controlnet": torch.zeros(0)}
    state = net.state_dict()
    lowered_ones = {name for name, module in net.named_modules() if isinstance(module, LowRank)}
    for name, value in state.items():
        stem, _, leaf = name.rpartition(".")
        owner = stem.removesuffix(".layer")
        if owner in lowered_ones and stem != owner:
            continue  # the UNet's own
        if stem in unet.state_dict() or (name in unet.state_dict() and owner not in lowered_ones):
            continue  # norms, as in the UNet
        weight = to_original_name(f"{owner}.weight", layers=layers).removesuffix(".weight")
        found[f"{weight}.{leaf}"] = value
    return found


Seen = tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]
"""Noisy latents, timesteps, context, added conditions."""


def single(kind: str, net: Any, seen: Seen, planes: Tensor, step: int) -> dict[str, Any]:
    """Return a ControlNet's residuals as keyword arguments for the UNet."""
    del step
    noisy, t, context, added = seen
    shown = hint(kind, planes)
    found = net(noisy, t, context, controlnet_cond=shown, added_cond_kwargs=added)
    return as_residuals(found)


def _union(kind: str, net: Any, seen: Seen, planes: Tensor, step: int) -> dict[str, Any]:
    del kind
    noisy, t, context, added = seen
    rng = np.random.default_rng((7, step))
    count = 2 if rng.random() < TWO_SHARE else 1
    kinds = [KINDS[i] for i in rng.permutation(len(KINDS))[:count]]
    types = [cast(int, HINTS[k].union) for k in kinds]
    marks = torch.zeros(len(noisy), UNION_TYPES)
    marks[:, types] = 1
    found = net(
        noisy,
        t,
        context,
        controlnet_cond=[hint(k, planes) for k in kinds],
        control_type=marks,
        control_type_idx=types,
        added_cond_kwargs=added,
    )
    return as_residuals(found)


def _adapter(kind: str, net: Any, seen: Seen, planes: Tensor, step: int) -> dict[str, Any]:
    del kind, seen, step
    return {"down_intrablock_additional_residuals": net(hint("softedge", planes))}


def as_residuals(found: Any) -> dict[str, Any]:
    """A control net's output, as keywords of the UNet's forward."""
    return {
        "down_block_additional_residuals": found.down_block_res_samples,
        "mid_block_additional_residual": found.mid_block_res_sample,
    }


RESIDUALS: dict[str, Callable[..., dict[str, Any]]] = {"union": _union, "adapter": _adapter}
