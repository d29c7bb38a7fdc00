"""The command `overpaint doctor`: what this machine has, and what a request needs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overpaint.cli.environment import read_home, read_models_dirs
from overpaint.cli.terminal import Terminal, echo
from overpaint.errors import RequestError

if TYPE_CHECKING:
    from overpaint.diffusion.memory import MemoryEstimate


def doctor(
    request: Annotated[
        Path | None,
        typer.Option(
            help="JSON file with the fields of a request, whose memory to report.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Model of that request.")
    ] = "miniature",
    vram: Annotated[
        float | None,
        typer.Option(
            help="Memory of a GPU in GB, for which to plan that request.",
            min=0,
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Report the devices, memory and libraries of this machine, and the models that fit it.

    With --request, also report the memory that a request needs, without loading the model.
    """
    from overpaint.models.doctor import GB, inspect_machine

    report = inspect_machine()
    estimate: MemoryEstimate | None = None
    if request is None and vram is not None:
        raise RequestError("vram_gb", "It needs --request FILE, whose memory it plans.")
    if request is not None:
        with Terminal().waiting(f"estimating the memory of {request}"):
            estimate = _estimate(request, model)
    if as_json:
        found: dict[str, Any] = asdict(report)
        if estimate:
            found["request"] = asdict(estimate) | {"total": estimate.total}
            if vram is not None:
                limit = estimate.limit_to(int(vram * 1e9))
                found["request"]["limit"] = limit and asdict(limit)
        typer.echo(json.dumps(found, default=str))
        return
    for line in report.lines():
        echo(line)
    if estimate:
        free = report.devices[0].free
        parts = (estimate.weights, estimate.encode, estimate.step, estimate.decode, estimate.total)
        weights, encode, step, decode, total = (f"{part / GB:.3f} GB" for part in parts)
        echo(
            f"{request}: {weights} of weights; beside them {encode} to encode, {step} in a step, "
            f"{decode} to decode; {total} of tensors: "
            f"{'fits' if estimate.total <= free else 'DOES NOT FIT'}"
        )
        if vram is not None:
            limit = estimate.limit_to(int(vram * 1e9))
            plan = "all weights are on the GPU"
            if limit:
                room = f"{limit.room('step') / GB:.1f} GB"
                plan = f"{room} of weights have room in a step, the others are copied to it"
            echo(f"{request}, with {vram:g} GB: {plan}")


def _estimate(file: Path, model: str) -> "MemoryEstimate":
    """Estimate the memory of the request in a file.

    Raises:
        RequestError: the file has no JSON object, or its fields are not valid.
        ModelError: there is no such model on this machine.
    """
    from overpaint.diffusion.memory import estimate_memory
    from overpaint.models.devices import choose_device
    from overpaint.models.library import catalog
    from overpaint.models.library.library import Library
    from overpaint.request import Request

    try:
        fields = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError("request", f"{file} cannot be read as JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise RequestError("request", f"{file} has no JSON object. Write the fields of a request.")
    library = Library(read_home(), read_models_dirs(), paths=True)
    if library.find_if(model, "checkpoint") is None:
        catalog.resolve_model(model, download=False)  # nothing is downloaded for an estimate
    small = model == "miniature"
    dtype = str(choose_device("auto", "auto", None, small=small).dtype).removeprefix("torch.")
    return estimate_memory(Request(**fields), model, library, dtype)
