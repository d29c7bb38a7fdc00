"""Scenes as arrays: rendered by several processes, then kept as latents with their true sizes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from miniature.rendering import render
from miniature.scenes import NATIVE, Scene, draw_scene

# (height, width) of the pictures in pixels, and the share of the scenes in each
SHAPES = {
    (128, 128): 0.80,
    (128, 192): 0.045,
    (192, 128): 0.045,
    (96, 128): 0.03,
    (128, 96): 0.03,
    (160, 160): 0.025,
    (104, 152): 0.0125,
    (152, 104): 0.0125,
}
CROPPED_SHARE = 0.12  # of the native-sized pictures: cut from a larger scene
EMPTY_SHARE = 0.25  # of the views: without objects, so that one can be taken away
WORKERS = 2
CHUNK = 64  # items that a process takes at a time

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class View:
    """A scene and the window of it that is seen: `top`, `left`, `height`, `width` in pixels."""

    scene: Scene
    top: int
    left: int
    height: int
    width: int

    @property
    def time_ids(self) -> tuple[int, int, int, int, int, int]:
        """SDXL's size ids: original height and width, crop top and left, height and width."""
        scene = self.scene
        return (scene.height, scene.width, self.top, self.left, self.height, self.width)


def draw_view(seed: int) -> View:
    """The training view of a seed: mostly whole native scenes, some cropped, some other shapes.

    Some are left without the objects.
    """
    view = _framed(np.random.default_rng(seed))
    if np.random.default_rng((seed, 2)).random() >= EMPTY_SHARE:
        return view
    return replace(view, scene=replace(view.scene, objects=(), relation=None))


def _framed(rng: np.random.Generator) -> View:
    sizes = list(SHAPES)
    height, width = sizes[rng.choice(len(sizes), p=list(SHAPES.values()))]
    if (height, width) != (NATIVE, NATIVE) or rng.random() >= CROPPED_SHARE:
        return View(draw_scene(rng, width, height), 0, 0, height, width)
    frame_height, frame_width = (int(8 * n) for n in rng.integers(17, 25, 2))
    top = 8 * int(rng.integers((frame_height - height) // 8 + 1))
    left = 8 * int(rng.integers((frame_width - width) // 8 + 1))
    return View(draw_scene(rng, frame_width, frame_height), top, left, height, width)


def render_view(view: View) -> NDArray[np.uint8]:
    """The window's pixels, (height, width, 3)."""
    picture = render(view.scene)
    return picture[view.top : view.top + view.height, view.left : view.left + view.width]


def _draw_and_render(seed: int) -> tuple[View, NDArray[np.uint8]]:
    view = draw_view(seed)
    return view, render_view(view)


def views(seeds: range) -> list[tuple[View, NDArray[np.uint8]]]:
    """Views and pixels of many seeds, in order."""
    return _map(_draw_and_render, seeds)


def native_scenes(seeds: range, *, held_out: bool) -> tuple[list[Scene], NDArray[np.uint8]]:
    """Scenes of the native size and their pixels (n, 128, 128, 3)."""
    return rendered(partial(_drawn, held_out=held_out), seeds)


def _drawn(seed: int, *, held_out: bool) -> Scene:
    return draw_scene(np.random.default_rng(seed), held_out=held_out)


def rendered(draw: Callable[[int], Scene], seeds: range) -> tuple[list[Scene], NDArray[np.uint8]]:
    """Scenes of one size, drawn by their seeds, and their pixels (n, height, width, 3)."""
    scenes = list(map(draw, seeds))
    return scenes, np.stack(_map(render, scenes))


def _map(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Call a function for many items, in several processes; for a few, that takes longer."""
    if len(items) <= CHUNK:
        return list(map(function, items))
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        return list(pool.imap(function, items, chunksize=CHUNK))
