"""The report card of LoRAs and the learned word: whether pictures show their concepts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from miniature.concepts import TOY, draw
from miniature.measure import FIRST_SEED, Figure, grid, paint
from miniature.reader import Reader, Reading, shown, styled
from miniature.scenes import COLORS, OUTLINES, Scene, caption, draw_scene, with_shape
from overpaint.models.adapters import Adapter
from overpaint.models.addons import NO_ADDONS, Addons
from overpaint.models.checkpoint import load_model
from overpaint.models.embedding import Embedding, load_embedding
from overpaint.models.lora import load_lora
from overpaint.models.model import Model
from overpaint.request import Request

STEPS = 20
LEARNED, TOGETHER = 0.9, 0.75
STYLED = ("comic", "sticker")
SHOWN = 12  # pictures of each row

Pixels = NDArray[np.uint8]
Right = Callable[[Reading], NDArray[np.bool_]]


def birds(rng: np.random.Generator, styles: tuple[str, ...]) -> Scene:
    """A held-out scene with a bird, in one of some styles."""
    while True:
        scene = with_shape(draw_scene(rng, held_out=None, styles=styles), "bird", rng)
        if scene.held_out:
            return scene


def a_toy(reading: Reading) -> NDArray[np.bool_]:
    """Which pictures show what the word means: most of the shape's pixels are of its color."""
    color, shape = TOY
    there = reading.shapes == list(OUTLINES).index(shape)
    right = there & (reading.colors == list(COLORS).index(color))
    return shown(reading, shape) & (2 * right.sum((1, 2)) > there.sum((1, 2)))


def _requests(scenes: Sequence[Scene], steps: int, word: str = "") -> list[Request]:
    """A request a scene; with a word, that instead of the object's color and shape."""
    texts = [caption(s, np.random.default_rng(s.texture), full=True) for s in scenes]
    if word:
        texts = [text.replace(" ".join(TOY), word) for text in texts]
    return [Request(prompt=text, seed=i, num_inference_steps=steps) for i, text in enumerate(texts)]


class Card:
    """Figures and rows of pictures as they are made."""

    def __init__(self, model: Model, reader: Reader) -> None:
        self.model = model
        self.reader = reader
        self.figures: list[Figure] = []
        self.rows: list[Pixels] = []

    def add(
        self,
        name: str,
        requests: Sequence[Request],
        right: Right,
        wanted: float | None,
        addons: Addons = NO_ADDONS,
    ) -> Pixels:
        """Paint, and count the pictures that are right."""
        painted = paint(self.model, requests, name, addons)
        share = float(right(self.reader.read(painted)).mean())
        self.figures.append(Figure(name, share, wanted, len(requests)))
        self.rows.append(painted[:SHOWN])
        return painted


def measured(
    model: Model,
    reader: Reader,
    loras: Mapping[str, Adapter],
    toy: Embedding,
    count: int,
    steps: int = STEPS,
) -> Card:
    """Count what each LoRA, two at once and the word bring, in `count` pictures each."""
    card = Card(model, reader)
    rng = np.random.default_rng(FIRST_SEED + 20)
    for style in STYLED:
        requests = _requests([draw(rng, style, held_out=True) for _ in range(count)], steps)
        right = partial(styled, style=style)
        without = card.add(f"{style}, without the LoRA", requests, right, None)
        card.add(f"{style}, at 1", requests, right, LEARNED, Addons(adapters=(loras[style],)))
        off = Adapter(loras[style].lora, 0.0, 0.0)
        same = paint(model, requests[:SHOWN], f"{style} at 0", Addons(adapters=(off,)))
        identical = float((same == without[:SHOWN]).all((1, 2, 3)).mean())
        card.figures.append(Figure(f"{style}, at 0: identical", identical, 1.0, len(same)))
    plain = _requests(
        [birds(rng, ("flat illustration", "watercolor")) for _ in range(count)], steps
    )
    with_bird = partial(shown, shape="bird")
    card.add("bird, without the LoRA", plain, with_bird, None)
    card.add("bird, at 1", plain, with_bird, LEARNED, Addons(adapters=(loras["bird"],)))
    for style in STYLED:
        requests = _requests([birds(rng, (style,)) for _ in range(count)], steps)

        def has_both(reading: Reading, style: str = style) -> NDArray[np.bool_]:
            return styled(reading, style) & shown(reading, "bird")

        both = Addons(adapters=(loras[style], loras["bird"]))
        card.add(f"{style} and bird at once", requests, has_both, TOGETHER, both)
    scenes = [draw(rng, "toy", held_out=True) for _ in range(count)]
    word = Addons(embeddings=(toy,))
    card.add("toy, without the word", _requests(scenes, steps, "object"), a_toy, None)
    card.add("toy", _requests(scenes, steps, f"<embedding:{toy.name}>"), a_toy, LEARNED, word)
    return card


def report(
    model_name: str, folders: tuple[Path, Path], reader: Reader, out: Path, count: int
) -> None:
    """Measure the LoRAs and the word of two folders: figures, a line of JSON, pictures."""
    out.mkdir(parents=True, exist_ok=True)
    model = load_model(model_name)
    loras = {p.stem: Adapter(load_lora(p, model)) for p in sorted(folders[0].iterdir())}
    toy = load_embedding(folders[1] / "toy.safetensors", "toy", model)
    card = measured(model, reader, loras, toy, count)
    grid(np.concatenate(card.rows), min(count, SHOWN)).save(out / "concepts.png")
    print(*card.figures, sep="\n")
    print(json.dumps({f.name: round(f.value, 4) for f in card.figures}))
