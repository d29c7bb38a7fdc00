"""The demo: repaints the sketches in this folder with the built-in miniature.

`make demo` runs it. Every picture it makes could be made by the command that it prints.
"""

import shlex
import sys
from pathlib import Path

from overpaint.cli.main import main

HERE = Path(__file__).parent
OUT = Path("out")

COMMANDS = (
    ("edit", "house", "a watercolor painting of a red house left of a green tree", "watercolor"),
    ("edit", "boat", "a neon sign of a yellow moon above an orange boat", "neon"),
    (
        "edit",
        "cup",
        "pixel art of a blue cup left of a purple star on a yellow background",
        "pixel",
    ),
    ("edit", "cup", "a flat illustration of a green house left of a red star", "changed"),
    ("create", "", "a flat illustration of a red fish below a blue boat on the sea", "created"),
    ("sweep", "house", "a watercolor painting of a red house left of a green tree", "sweep"),
)


def run(verb: str, sketch: str, prompt: str, name: str) -> None:
    """Run one command, after saying it."""
    picture = [str((HERE / f"{sketch}.png").relative_to(Path.cwd()))] if sketch else []
    options = ["--strength", "0.7"] if verb == "edit" else []
    if verb == "sweep":
        options = ["--strength", "0.2,0.4,0.6,0.8,1.0", "--guidance", "3,5,8"]
    output = OUT / f"{sketch}-{name}.png" if sketch else OUT / f"{name}.png"
    command = [verb, *picture, prompt, *options, "--seed", "7", "--output", str(output)]
    print(f"\n$ overpaint {shlex.join(command)}", flush=True)
    try:
        main(command)
    except SystemExit as end:
        if end.code:
            raise


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    for command in COMMANDS:
        run(*command)
    print(f"\nThe pictures are in {OUT.resolve()}.", file=sys.stderr)
