"""Make the pictures of the README and the documentation: `python -m examples.figures`."""

from pathlib import Path
from typing import Any

from PIL import Image

import overpaint
from miniature.rendering import depth, labels, render
from miniature.scenes import Item, Scene
from overpaint.imaging import codec, grid, sizing
from overpaint.imaging.hints import make_hint
from overpaint.imaging.hints.drawing import draw_label_map
from overpaint.request.parts import Control, Lora

HERE = Path(__file__).parent
FIGURES = HERE.parent / "docs" / "images"
SHOWN = 192

SKETCHES = {
    "house": "{} of a red house left of a green tree",
    "boat": "{} of a yellow moon above an orange boat",
    "cup": "{} of a blue cup left of a purple star",
}
STYLES = ("watercolor painting", "flat illustration", "pixel art", "neon sign")


def shown(image: Image.Image, resampling: Image.Resampling) -> Image.Image:
    """Return a picture at the size of the figures."""
    return image.resize((SHOWN, SHOWN), resampling)


def sketch(name: str) -> Image.Image:
    """Open a sketch in this folder."""
    return Image.open(HERE / f"{name}.png").convert("RGB")


def before_after(painter: overpaint.Painter) -> None:
    """Draw every sketch and its result in every style."""
    rows: list[list[Image.Image]] = []
    for name, prompt in SKETCHES.items():
        results = [
            painter.edit(sketch(name), prompt.format(style), strength=0.7, seed=7).images[0]
            for style in STYLES
        ]
        rows.append(
            [shown(sketch(name), Image.Resampling.LANCZOS)]
            + [shown(result, Image.Resampling.BICUBIC) for result in results]
        )
    sheet = grid.draw_grid(rows, ["sketch", *STYLES], list(SKETCHES))
    sheet.save(FIGURES / "before-after.png", optimize=True)


def strength_sweep(painter: overpaint.Painter) -> None:
    """Draw one sketch over strength and guidance."""
    strengths, scales = (0.2, 0.4, 0.6, 0.8, 1.0), (2.0, 5.0, 9.0)
    prompt = SKETCHES["house"].format("watercolor painting")
    results = [
        painter.edit(sketch("house"), prompt, strength=strength, guidance_scale=scale, seed=7)
        for scale in scales
        for strength in strengths
    ]
    pictures = [shown(result.images[0], Image.Resampling.BICUBIC) for result in results]
    sheet = grid.draw_sweep_grid(pictures, strengths, scales)
    sheet.save(FIGURES / "strength-sweep.png", optimize=True)


SOURCE = overpaint.Request(
    prompt="a flat illustration of a red house left of a green tree on a blue background", seed=3
)
HOUSE = "box:8,24,66,104"


def masks(painter: overpaint.Painter) -> None:
    """Draw a replaced object, a removed one, an extension and a mask that rises to the right."""
    inpainter = overpaint.load("miniature-inpaint")
    source = painter.run(SOURCE).images[0]
    ramp = Image.linear_gradient("L").rotate(90).resize(source.size)
    background = "a flat illustration of a blue background"
    cases: dict[str, tuple[overpaint.Painter, str, dict[str, Any]]] = {
        "replaced": (
            inpainter,
            "a flat illustration of a yellow star left of a green tree on a blue background",
            {"mask_from": HOUSE},
        ),
        "removed": (inpainter, background, {"mask_from": HOUSE, "task": "remove"}),
        "extended": (inpainter, background, {"extend": (0, 0, 64, 0)}),
        "soft mask": (
            painter,
            "a watercolor painting of a red house left of a green tree on a blue background",
            {"mask": codec.read_picture(ramp), "crop": "off"},
        ),
    }
    results = [
        model.edit(source, prompt, seed=7, **fields).images[0]
        for model, prompt, fields in cases.values()
    ]
    row = [sizing.fit_image(result, (SHOWN, SHOWN), "contain") for result in (source, *results)]
    grid.draw_grid([row], ["source", *cases], [""]).save(FIGURES / "masks.png", optimize=True)


def stages(painter: overpaint.Painter) -> None:
    """Draw one picture by the base model, after the refiner, and upscaled by two."""
    prompt = "a watercolor painting of a yellow moon above an orange boat on the sea"
    cases: dict[str, dict[str, Any]] = {
        "base alone": {},
        "refined": {"refiner": "miniature-refiner"},
        "at twice the size": {"upscale": 2.0, "refine_strength": 0.2},
    }
    row = [
        shown(painter.create(prompt, seed=7, **fields).images[0], Image.Resampling.BICUBIC)
        for fields in cases.values()
    ]
    grid.draw_grid([row], list(cases), [""]).save(FIGURES / "stages.png", optimize=True)


DRAWN = Scene(
    "flat illustration",
    "sky",
    (Item("house", "red", 42, 82, 34), Item("star", "yellow", 94, 36, 26)),
    None,
    128,
    128,
    7,
)
STEERED = (
    "a watercolor painting of a green house and a purple star on a yellow background",
    "a neon sign of a cyan house and an orange star on a purple background",
)


def hints(painter: overpaint.Painter) -> None:
    """Draw a sketch, its control images, and the results of two prompts with each of them."""
    drawing = codec.read_picture(Image.fromarray(render(DRAWN)))
    near = codec.read_picture(Image.fromarray(depth(DRAWN)).convert("RGB"))
    places = codec.read_picture(draw_label_map(labels(DRAWN)))
    union, edges = "miniature-union", "miniature-canny"
    cases: dict[str, tuple[Control, ...]] = {
        "no hint": (),
        "canny": (Control(kind="canny", image=drawing),),
        "soft edges": (Control(kind="softedge", image=drawing),),
        "lines": (Control(kind="lineart", image=drawing, net=edges),),
        "depth": (Control(kind="depth", hint=near),),
        "segmentation": (Control(kind="segmentation", hint=places),),
        "depth and canny": (
            Control(kind="depth", hint=near, net=union, scale=0.6),
            Control(kind="canny", image=drawing, net=union, scale=0.6),
        ),
    }
    rows = [[Image.fromarray(render(DRAWN)), *(_hint(c[0]) for c in cases.values() if c)]]
    for prompt in STEERED:
        rows.append([painter.create(prompt, seed=7, controls=c).images[0] for c in cases.values()])
    shown_rows = [[shown(picture, Image.Resampling.BICUBIC) for picture in row] for row in rows]
    names = ["hint", *(prompt.split(" of ")[0] for prompt in STEERED)]
    grid.draw_grid(shown_rows, list(cases), names).save(FIGURES / "hints.png", optimize=True)


def _hint(control: Control) -> Image.Image:
    given = control.hint or control.image
    if given is None:
        raise ValueError("every control here has its picture")
    picture = codec.decode(given)
    return picture if control.hint else make_hint(control.kind, picture)


def loras(painter: overpaint.Painter) -> None:
    """Draw a LoRA style, an object that the base model does not know, and both together."""
    prompt = "of a yellow bird above a red house in the sky"
    cases: dict[str, tuple[str, dict[str, float]]] = {
        "none": ("a comic", {}),
        "bird": ("a flat illustration", {"bird": 1.0}),
        "comic": ("a comic", {"comic": 1.0}),
        "comic at 0.5, bird": ("a comic", {"comic": 0.5, "bird": 1.0}),
        "comic and bird": ("a comic", {"comic": 1.0, "bird": 1.0}),
        "sticker and bird": ("a sticker", {"sticker": 1.0, "bird": 1.0}),
    }
    row = [
        painter.create(
            f"{style} {prompt}",
            seed=7,
            loras=tuple(Lora(name=f"miniature-{n}", scale=s) for n, s in asked.items()),
        ).images[0]
        for style, asked in cases.values()
    ]
    shown_row = [shown(picture, Image.Resampling.BICUBIC) for picture in row]
    grid.draw_grid([shown_row], list(cases), [""]).save(FIGURES / "loras.png", optimize=True)


if __name__ == "__main__":
    FIGURES.mkdir(exist_ok=True)
    loaded = overpaint.load("miniature")
    before_after(loaded)
    strength_sweep(loaded)
    masks(loaded)
    stages(loaded)
    hints(loaded)
    loras(loaded)
