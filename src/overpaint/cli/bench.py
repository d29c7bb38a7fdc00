"""`overpaint bench`: measure step times for `overpaint serve --profile`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from overpaint.cli.environment import read_home
from overpaint.cli.terminal import Terminal, echo
from overpaint.errors import RequestError

if TYPE_CHECKING:
    from overpaint.engine.profile import Profile


def bench(
    model: Annotated[
        str, typer.Option("--model", "-m", help="Model: a name, a folder, a file or a hub id.")
    ] = "miniature",
    size: Annotated[
        list[str] | None,
        typer.Option(
            help="Size of the pictures: 512 or 1024x768. Can be repeated.",
            show_default="the size that the model was trained on",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write for `overpaint serve --profile`."),
    ] = None,
    device: Annotated[str, typer.Option(help="Device: cpu, cuda, cuda:1, mps or auto.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="Number format of the weights: bf16, fp16, fp32, int8, fp8 or auto.")
    ] = "auto",
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only errors on stderr.")
    ] = False,
) -> None:
    """Measure the step times of 1, 2, 4 … rows on this machine, and the best batch size."""
    sizes = [_size(text) for text in size or []]
    terminal = Terminal(quiet=quiet)

    import overpaint  # load() imports torch
    from overpaint.engine.calibrate import calls
    from overpaint.engine.profile import Profile, kind_of

    with terminal.waiting(f"loading {model}"):
        loaded = overpaint.load(model, device=device, dtype=dtype, home=read_home()).model
    where, what = str(loaded.device), loaded.dtype_name
    measured: dict[tuple[int, int], dict[int, float]] = {}
    for width, height in sizes or [(loaded.native_size, loaded.native_size)]:
        with terminal.waiting(f"measuring {width}x{height}"):
            found = list(calls(loaded, width, height))
        for call in found:
            said = f"{width}x{height}, {call.rows} rows: "
            if call.seconds is None:
                terminal.say(f"{said}out of memory")
                continue
            terminal.say(f"{said}{call.seconds:.4f} s")
            measured.setdefault(call.shape, {})[call.rows] = call.seconds
    profile = Profile(kind_of(loaded.device.type), measured, model, what)
    echo(f"{model} in {what} on {where}")
    for shape in measured:
        echo(_table(profile, shape, loaded.vae_factor))
    if output:
        profile.write(output)


def _size(text: str) -> tuple[int, int]:
    """Return (width, height) in pixels."""
    if found := re.fullmatch(r"(\d{1,9})(?:[xX×](\d{1,9}))?", text):
        return int(found[1]), int(found[2] or found[1])
    raise RequestError("size", f"{text!r} is not a size. Give SIDE or WIDTHxHEIGHT.")


def _table(profile: "Profile", shape: tuple[int, int], factor: int) -> str:
    """Return the step times of one size, and its best batch size, as a table."""
    height, width = shape
    cap = profile.cap(height, width)
    lines = [f"{width * factor}x{height * factor}: steps of up to {cap} rows"]
    lines += [f"{'rows':>6}{'seconds':>10}{'per row':>10}"]
    for rows, seconds in profile.measured[shape].items():
        lines.append(f"{rows:>6}{seconds:>10.4f}{seconds / rows:>10.4f}")
    return "\n".join(lines)
