"""Runs the benchmarks; the last line of its output is everything measured, as JSON."""

import argparse
import json
import os
import platform
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Any

from benchmarks.harness import print_line

BENCHMARKS = {
    "startup": ("benchmarks.startup", "measure", "start time"),
    "miniature": ("benchmarks.painting", "measure_miniature", "the miniature, fp32, guided"),
    "busy": ("benchmarks.painting", "measure_busy", "the miniature beside a busy process"),
    "presets": ("benchmarks.presets", "measure", "the presets on the miniature"),
    "control": ("benchmarks.control", "measure", "a ControlNet that stops half-way"),
    "loras": ("benchmarks.loras", "measure", "switching among eight LoRAs"),
    "loading": ("benchmarks.loading", "measure", "peak host memory of loading"),
    "memory": ("benchmarks.memory", "measure", "full-size SDXL within less and less memory"),
    "serving": ("benchmarks.serving", "measure", "a server under mixed load, beside diffusers"),
    "full-size": (
        "benchmarks.painting",
        "measure_full_size",
        "random SDXL, bf16 where the CPU has it, guided",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller cases")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(BENCHMARKS)}")
    result: dict[str, Any] = {
        "machine": {
            "processor": platform.machine(),
            "cpus": len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
            **{name: version(name) for name in ("torch", "diffusers", "transformers")},
        },
        "quick": arguments.quick,
    }
    for name in arguments.names or BENCHMARKS:
        module, function, title = BENCHMARKS[name]
        print_line(f"{name}: {title}")
        measure: Callable[..., dict[str, Any]] = getattr(import_module(module), function)
        result[name] = measure(quick=arguments.quick)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
