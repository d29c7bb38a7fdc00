"""How long it takes to import the library and to get the command line's help."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import interleave, print_line

COMMANDS = {
    "import overpaint": [sys.executable, "-c", "import overpaint"],
    "overpaint --help": [str(Path(sys.executable).parent / "overpaint"), "--help"],
    "import diffusers": [sys.executable, "-c", "import diffusers"],
    "import its SDXL pipeline": [
        sys.executable,
        "-c",
        "from diffusers import StableDiffusionXLPipeline",
    ],
}


def measure(*, quick: bool) -> dict[str, Any]:
    timings = interleave(
        {
            name: lambda command=command: subprocess.run(command, check=True, capture_output=True)
            for name, command in COMMANDS.items()
        },
        rounds=3 if quick else 9,
    )
    result = {name: round(timings.median(name), 3) for name in COMMANDS}
    for name, seconds in result.items():
        print_line(f"  {name:28} {seconds:6.3f} s")
    return result
