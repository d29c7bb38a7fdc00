"""Concepts for the finished base model: two styles, an object, and a word for a known object.

| concept | taught by |
|---|---|
| `comic`, `sticker` | a LoRA each, from scenes in that style alone |
| `bird` | a LoRA, from scenes of any style; half of them without it, so that the rest is kept |
| `toy` | two learned vectors: it means a purple fish |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from miniature import vae as autoencoder
from miniature.common import read_tensors, write_tensors
from miniature.data import View, rendered
from miniature.scenes import Scene, allowed_colors, draw_scene, with_shape
from miniature.unet import Bucket

FIRST_SEED = 70_000_000
COUNT = 2000  # scenes of each
BATCH = 32
TOY = ("purple", "fish")


def _styled(rng: np.random.Generator, *, style: str) -> Scene:
    return draw_scene(rng, held_out=None, styles=(style,))


def _bird(rng: np.random.Generator) -> Scene:
    scene = draw_scene(rng, held_out=None)
    return with_shape(scene, "bird", rng) if rng.random() < 0.5 else scene


def _toy(rng: np.random.Generator) -> Scene:
    color, shape = TOY
    while True:
        scene = draw_scene(rng, held_out=None, two=False)
        if color in allowed_colors(scene.style, scene.background):
            item = dataclasses.replace(scene.objects[0], color=color, shape=shape)
            return dataclasses.replace(scene, objects=(item,))


LORAS: dict[str, Callable[[np.random.Generator], Scene]] = {
    "comic": partial(_styled, style="comic"),
    "sticker": partial(_styled, style="sticker"),
    "bird": _bird,
}
WORDS: dict[str, Callable[[np.random.Generator], Scene]] = {"toy": _toy}
CONCEPTS = LORAS | WORDS


def draw(rng: np.random.Generator, concept: str, *, held_out: bool = False) -> Scene:
    """Sample a scene that shows a concept."""
    while True:
        scene = CONCEPTS[concept](rng)
        if scene.held_out == held_out:
            return scene


def scene_of(seed: int, concept: str) -> Scene:
    """The scene of a seed."""
    return draw(np.random.default_rng(seed), concept)


@torch.no_grad()
def encode(vae: AutoencoderKL, concept: str, path: Path, count: int = COUNT) -> None:
    """Render `count` scenes of a concept, and keep their latents."""
    if path.exists():
        return
    first = FIRST_SEED + count * list(CONCEPTS).index(concept)
    seeds = range(first, first + count)
    _, pixels = rendered(partial(scene_of, concept=concept), seeds)
    mean, std = autoencoder.moments(vae, autoencoder.to_tensor(pixels))
    write_tensors(path, {"seed": torch.tensor(list(seeds)), "mean": mean, "std": std})


def load(concept: str, path: Path) -> list[Bucket]:
    """Read the output of `encode` as one bucket."""
    tensors = read_tensors(path)
    scenes = [scene_of(seed, concept) for seed in tensors["seed"].tolist()]
    views = [View(s, 0, 0, s.height, s.width) for s in scenes]
    return [Bucket(tensors["mean"], tensors["std"], views)]
