"""Options of `Painter.edit` and `create` that an editor completes and a type checker verifies.

    python examples/typed_options.py

Pyright reports each line below that carries an ignore comment; without the report it would report
the comment as unnecessary.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from pathlib import Path

import overpaint
from overpaint import Painter, Result

SKETCH = Path(__file__).with_name("house.png")


def paint_house(painter: Painter) -> Result:
    """Repaint the sketch of a house with options of several types."""
    return painter.edit(
        SKETCH,
        "a watercolor painting of a red house",
        strength=0.6,
        num_inference_steps=20,
        sampler="dpmpp_2m",
        fit="cover",
        mask_from="box:0,0,64,64",
        extend=(0, 16, 0, 0),
        seed=7,
    )


def paint_with_mistakes(painter: Painter) -> None:
    """Show the mistakes that a type checker finds before anything runs."""
    painter.edit(SKETCH, "a house", strenth=0.6)  # pyright: ignore[reportCallIssue]
    painter.edit(SKETCH, "a house", fit="crop")  # pyright: ignore[reportArgumentType]
    painter.create("a house", seed="7")  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    paint_house(overpaint.load("miniature")).save("out.png")
