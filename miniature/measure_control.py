"""The report card of control images: whether pictures follow the control image and the prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from miniature.measure import FIRST_SEED, Figure, as_picture, grid, never_falls, paint
from miniature.reader import Reader, colored, overlap
from miniature.rendering import depth, labels, render
from miniature.scenes import Scene, caption, draw_anywhere, recolored
from overpaint.imaging import codec
from overpaint.imaging.hints import drawing
from overpaint.models.addons import Addons
from overpaint.models.checkpoint import load_model
from overpaint.models.controlnet import ControlNet, load_controlnet
from overpaint.models.model import Model
from overpaint.request import Request
from overpaint.request.parts import Control

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)
STEPS = 20
KINDS = ("canny", "segmentation", "depth")
IOU, ABOVE, COLOR = 0.75, 0.3, 0.85
WITHIN = 0.05  # of the single nets: how far behind a union net may be

Pixels = NDArray[np.uint8]


def _scenes(count: int) -> tuple[list[Scene], list[Scene]]:
    """Held-out scenes that hints are made of, and the same recolored, which are prompted."""
    rng = np.random.default_rng(FIRST_SEED + 10)
    shown = [draw_anywhere(rng, held_out=True) for _ in range(count)]
    return shown, [recolored(rng, scene, held_out=True) for scene in shown]


def hint_of(kind: str, scene: Scene) -> Control:
    """A control with the scene's hint of a kind."""
    if kind in ("canny", "softedge"):
        return Control(kind=kind, image=as_picture(render(scene)))
    if kind == "depth":
        shown = Image.fromarray(depth(scene)).convert("RGB")
    else:
        shown = drawing.draw_label_map(labels(scene))
    return Control(kind=kind, hint=codec.read_picture(shown))


def _paint(
    model: Model,
    net: ControlNet | None,
    prompted: Sequence[Scene],
    controls: Sequence[Control],
    name: str,
    scale: float = 1.0,
    steps: int = STEPS,
) -> Pixels:
    requests = [
        Request(
            prompt=caption(scene, np.random.default_rng(scene.texture), full=True),
            seed=i,
            num_inference_steps=steps,
            controls=(control.model_copy(update={"scale": scale}),) if net else (),
        )
        for i, (scene, control) in enumerate(zip(prompted, controls, strict=True))
    ]
    return paint(model, requests, name, Addons(nets=(net if scale else None,)))


def followed(
    model: Model,
    reader: Reader,
    nets: dict[str, ControlNet],
    count: int,
    out: Path,
    steps: int = STEPS,
) -> tuple[list[Figure], dict[str, NDArray[np.float64]]]:
    """Single nets, a union net and an adapter: structure from the hint, colors from the prompt.

    Also the IoU of every picture, by "net: kind", and by "" without a hint.
    """
    shown, prompted = _scenes(count)
    plain = [Control(kind="canny", image=as_picture(render(s))) for s in shown]
    without = _paint(model, None, prompted, plain, "no hint", steps=steps)
    ious = {"": overlap(reader.read(without), prompted)}
    base = float(ious[""].mean())
    figures = [Figure("IoU without a hint", base, None, count)]
    rows = [np.stack([render(s) for s in shown])[:12], without[:12]]
    cases = [(kind, kind) for kind in KINDS] + [("union", kind) for kind in KINDS]
    cases.append(("softedge", "softedge"))
    for name, kind in cases:
        if name not in nets:
            continue
        controls = [hint_of(kind, scene) for scene in shown]
        case = f"{name}: {kind}"
        painted = _paint(model, nets[name], prompted, controls, case, steps=steps)
        reading = reader.read(painted)
        ious[case] = overlap(reading, prompted)
        wanted = max(IOU, base + ABOVE)
        if name == "union" and kind in nets:
            wanted = float(ious[f"{kind}: {kind}"].mean()) - WITHIN
        figures += [
            Figure(f"IoU with the hint, {case}", float(ious[case].mean()), wanted, count),
            Figure(f"colors as prompted, {case}", colored(reading, prompted), COLOR, count),
        ]
        rows.append(painted[:12])
    grid(np.concatenate(rows), min(count, 12)).save(out / "followed.png")
    return figures, ious


def rising(
    model: Model, reader: Reader, net: ControlNet, count: int, ends: list[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """IoU with canny hints at each of `SCALES`: (scales, pictures); of scales 0 and 1 given."""
    shown, prompted = _scenes(count)
    controls = [hint_of("canny", scene) for scene in shown]
    between = [
        overlap(reader.read(_paint(model, net, prompted, controls, f"scale {s}", s)), prompted)
        for s in SCALES[1:-1]
    ]
    return np.stack([ends[0], *between, ends[1]])


def plot(ious: NDArray[np.float64], path: Path) -> None:
    """Likeness to the hint over the scale."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    axes.plot(SCALES, ious.mean(1), marker="o")
    axes.set(xlabel="scale", ylabel="IoU with the hint's objects", ylim=(0, 1))
    axes.grid(alpha=0.3)
    figure.savefig(path)
    plt.close(figure)


def report(model_name: str, folder: Path, reader: Reader, out: Path, *, count: int) -> None:
    """Measure every net in a folder: figures, one line of JSON, pictures into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    model = load_model(model_name)
    nets = {
        path.stem: load_controlnet(path, model) for path in sorted(folder.glob("*.safetensors"))
    }
    figures, found = followed(model, reader, nets, count, out)
    ends = [found[""], found["canny: canny"]]
    ious = rising(model, reader, nets["canny"], count, ends)
    plot(ious, out / "scale.png")
    print(*figures, sep="\n")
    print("IoU by scale", *(f"{v:.3f}" for v in ious.mean(1)), "monotone", never_falls(ious))
    print(
        json.dumps({f.name: round(f.value, 4) for f in figures} | {"scale": ious.mean(1).tolist()})
    )
