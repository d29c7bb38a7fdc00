"""Run all long stress programs, one after another, and print their figures.

`make stress` calls this. `python -m tests.stress NAME …` runs only the named programs. A program
prints one line of JSON, and fails if its report does not pass. `python -m tests.stress.NAME
ARGUMENTS` runs one program with other arguments.
"""

from __future__ import annotations

import subprocess
import sys
import time

PROGRAMS: dict[str, tuple[str, ...]] = {
    "restart": ("10000",),
    "company": ("60",),
    "cancel": ("200",),
    "disk": (),
    "disk --full": (),
    "frozen": ("25",),
    "fuzz": ("12000",),
    "ledger": ("100", "2000"),
    "kills": ("1000", "20000"),
    "kills --engine miniature": ("50", "300"),
    "hostile": ("480",),
    "overload": ("600",),
    "soak": ("3600",),
}
"""The programs, the short ones first, with the arguments of a long run."""


def run_program(name: str) -> bool:
    """Run a program, print its duration, and return whether it passed."""
    module, *options = name.split()
    print(f"== {name} {' '.join(PROGRAMS[name])}", flush=True)
    began = time.monotonic()
    command = [sys.executable, "-m", f"tests.stress.{module}", *PROGRAMS[name], *options]
    passed = subprocess.run(command, check=False).returncode == 0
    print(f"{'passed' if passed else 'FAILED'} in {time.monotonic() - began:.0f} s", flush=True)
    return passed


def main(names: list[str]) -> None:
    if unknown := [name for name in names if name not in PROGRAMS]:
        raise SystemExit(f"unknown: {', '.join(unknown)}; choose from: {', '.join(PROGRAMS)}")
    failed = [name for name in names or PROGRAMS if not run_program(name)]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main(sys.argv[1:])
