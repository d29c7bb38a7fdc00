"""The demo: repaint the sketches in this folder, and the results, with the miniature model.

`make demo` runs it in the repository's folder. It prints and runs one command for each picture.
"""

import shlex
import sys
from pathlib import Path

from overpaint.cli.main import main

OUT = Path("out")

COMMANDS = {
    "house-watercolor": "edit examples/house.png --strength 0.7 "
    "'a watercolor painting of a red house left of a green tree'",
    "boat-neon": "edit examples/boat.png --strength 0.7 "
    "'a neon sign of a yellow moon above an orange boat'",
    "cup-pixel": "edit examples/cup.png --strength 0.7 "
    "'pixel art of a blue cup left of a purple star on a yellow background'",
    "cup-changed": "edit examples/cup.png --strength 0.7 "
    "'a flat illustration of a green house left of a red star'",
    "created": "create 'a flat illustration of a red house left of a green tree on a blue "
    "background' --refiner miniature-refiner",
    "created-replaced": "edit out/created.png --model miniature-inpaint "
    "--mask-from box:6,26,64,100 "
    "'a flat illustration of a yellow star left of a green tree on a blue background'",
    "created-removed": "edit out/created.png --model miniature-inpaint "
    "--mask-from box:6,26,64,100 --task remove 'a flat illustration of a blue background'",
    "created-extended": "edit out/created.png --model miniature-inpaint --extend right=64 "
    "'a flat illustration of a blue background'",
    "created-enlarged": "edit out/created.png --strength 0.3 --upscale 2 --refine-strength 0.2 "
    "'a watercolor painting of a red house left of a green tree on a blue background'",
    "house-same-edges": "create 'a neon sign of a cyan house and a green tree' "
    "--control canny=examples/house.png",
    "house-comic": "edit examples/house.png --strength 0.9 --control canny "
    "'a comic of a blue house left of an orange tree' --lora miniature-comic",
    "birds": "create 'a sticker of a yellow bird above a red house' "
    "--lora miniature-sticker --lora miniature-bird",
    "house-sweep": "sweep examples/house.png --strength 0.2,0.4,0.6,0.8,1.0 --guidance 3,5,8 "
    "'a watercolor painting of a red house left of a green tree'",
}


def run(name: str, command: str) -> None:
    """Print a command and run it."""
    arguments = [*shlex.split(command), "--seed", "7", "--output", str(OUT / f"{name}.png")]
    print(f"\n$ overpaint {shlex.join(arguments)}", flush=True)
    try:
        main(arguments)
    except SystemExit as end:
        if end.code:
            raise


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    for name, command in COMMANDS.items():
        run(name, command)
    print(f"\nThe pictures are in {OUT.resolve()}.", file=sys.stderr)
