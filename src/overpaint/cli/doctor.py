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
    from overpaint.diffusion.memory import MemoryPlan


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
    ram: Annotated[
        float | None,
        typer.Option(
            help="Memory of a process in GB, for which to plan that request on the CPU.",
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
    plan: MemoryPlan | None = None
    if request is None and (vram, ram) != (None, None):
        field = "ram_gb" if vram is None else "vram_gb"
        raise RequestError(field, "It needs --request FILE, whose memory it plans.")
    if request is not None:
        with Terminal().waiting(f"estimating the memory of {request}"):
            plan = _plan(request, model, vram, ram)
    if as_json:
        found: dict[str, Any] = asdict(report)
        if plan:
            found["request"] = asdict(plan.estimate) | {"total": plan.estimate.total}
            if (vram, ram) != (None, None):
                found["request"]["limit"] = plan.limit and asdict(plan.limit)
        typer.echo(json.dumps(found, default=str))
        return
    for line in report.lines():
        echo(line)
    if plan:
        free, need = report.devices[0].free, plan.estimate
        parts = (need.weights, need.encode, need.step, need.decode, need.total)
        weights, encode, step, decode, total = (f"{part / GB:.3f} GB" for part in parts)
        echo(
            f"{request}: {weights} of weights; beside them {encode} to encode, {step} in a step, "
            f"{decode} to decode; {total} of tensors: "
            f"{'fits' if need.total <= free else 'DOES NOT FIT'}"
        )
        for given, where in ((vram, "of a GPU"), (ram, "of RAM")):
            if given is not None:
                echo(f"{request}, with {given:g} GB {where}: {plan.describe()}")


def _plan(file: Path, model: str, vram: float | None, ram: float | None) -> "MemoryPlan":
    """Plan the memory of the request in a file.

    Raises:
        RequestError: the file has no JSON object, or its fields are not valid.
        ModelError: there is no such model on this machine.
    """
    import torch

    from overpaint.diffusion.memory import META, plan_memory
    from overpaint.models.devices import DeviceOptions, list_devices
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
    device = list_devices()[0]
    if vram is not None and device.type in ("cpu", "mps"):
        device = META  # stands for a GPU that this machine does not have
    if ram is not None:
        device = torch.device("cpu")
    asked = Request(**fields)
    options = DeviceOptions(device, vram_gb=vram, ram_gb=ram)
    return plan_memory(model, library, options, request=asked)
