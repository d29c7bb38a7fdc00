"""The entry point: commands, exit codes, messages."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overpaint.cli import keys
from overpaint.cli.bench import bench
from overpaint.cli.paint import create, edit, sweep
from overpaint.cli.serve import serve
from overpaint.cli.settings import OPTIONS, hint_source, home, options
from overpaint.cli.terminal import Terminal
from overpaint.cli.usage import usage
from overpaint.errors import OverpaintError, PictureError, RequestError
from overpaint.provenance import metadata
from overpaint.registry import HINTS
from overpaint.request_parts import Control

if TYPE_CHECKING:
    from overpaint.imaging.hints import Estimate

ARGUMENTS = OPTIONS | {
    "prompt": "PROMPT",
    "image": "PICTURE",
    "device": "--device",
    "dtype": "--dtype",
    "model": "--model",
    "kind": "KIND",
    "options": "--option",
    "estimator": "--estimator",
    "host": "--host",
    "otel": "--otel",
    "allowed_origin": "--allowed-origin",
    "c2pa_certificate": "--c2pa-certificate",
    "c2pa_key": "--c2pa-key",
    "profile": "--profile",
    "until": "--until",
    "price": "--price",
}

MARKED = "SDXL's, invisible"

app = typer.Typer(
    help="Repaint pictures with Stable Diffusion XL on your own hardware.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(edit)
app.command()(create)
app.command()(sweep)
app.command()(serve)
app.command()(bench)
models = typer.Typer(help="Models that can be loaded.", no_args_is_help=True)
app.add_typer(models, name="models")
app.add_typer(keys.app, name="keys")
app.command()(usage)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with the exit code.

    0 for success, the code of the error's class (see `overpaint.errors`), 2 for arguments that
    cannot be understood, 130 when interrupted. Any other error is a defect and shows its traceback.
    """
    try:
        app(arguments, prog_name="overpaint")
    except OverpaintError as error:
        print(f"overpaint: {_message(error)}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _message(error: OverpaintError) -> str:
    """The error's message, with the field's name as it is on the command line."""
    text = str(error)
    if isinstance(error, RequestError):
        name = ARGUMENTS.get(error.field.split(".")[0], error.field)
        return name + text.removeprefix(error.field)
    return text


def _version(wanted: bool) -> None:
    if wanted:
        from overpaint import __version__

        typer.echo(f"overpaint {__version__}")
        raise typer.Exit


@app.callback()
def _overpaint(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print and exit.")
    ] = False,
) -> None:
    del version  # its callback has done all


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="A picture.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the settings that a picture carries, and its watermark.

    They are read as we, A1111, ComfyUI or InvokeAI write them.
    """
    from overpaint.imaging import codec
    from overpaint.provenance import watermark  # import OpenCV

    mark = {"watermark": watermark.found(codec.decode(codec.read_picture(file)))}
    try:
        found = metadata.read(file)
    except PictureError:
        if not mark["watermark"]:
            raise
        if as_json:
            typer.echo(json.dumps(mark))
        else:
            _show({"watermark": MARKED})
        return
    if as_json:
        keys = ("program", "model", "fields", "notes", "record")
        typer.echo(json.dumps({key: getattr(found, key) for key in keys} | mark))
        return
    facts: dict[str, Any] = {"made by": found.program, "model": found.model or "unknown"}
    facts |= found.fields
    if found.record:
        facts |= _provenance(found.record)
    facts["watermark"] = MARKED if mark["watermark"] else "none"
    _show(facts)
    for note in found.notes:
        typer.echo(f"note: {note}")


def _provenance(record: Mapping[str, Any]) -> dict[str, Any]:
    """What our record holds besides the request, as `info` names it."""
    width, height = record["size"]
    swept = {"sweep of": ", ".join(record["sweep"])} if "sweep" in record else {}
    files = {
        f"{kind} {name}": digest["file"] if isinstance(digest, dict) else digest
        for kind, key in (("LoRA", "loras"), ("net", "nets"), ("embedding", "embeddings"))
        for name, digest in record.get(f"{key}_sha256", {}).items()
    }
    return (
        swept
        | files
        | {
            "result": f"{width}x{height}",
            "weights": record["model"]["sha256"],
            "computed": " on ".join(
                str(record["model"].get(key, "?")) for key in ("dtype", "device")
            ),
            "input": record["input_sha256"] or "none",
            "versions": ", ".join(
                f"{name} {number}" for name, number in record["versions"].items()
            ),
            "written by": f"overpaint {record['version']}",
        }
    )


@app.command()
def hint(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(HINTS)}.", show_default=False)],
    picture: Annotated[
        Path, typer.Argument(help="The picture; for a pose its keypoints.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write.")],
    option: Annotated[
        list[str] | None, typer.Option(help="Of the kind, such as low=50.", show_default=False)
    ] = None,
    estimator: Annotated[
        str | None,
        typer.Option(
            help="What sees depth or classes in the picture: a name, a folder or a hub id.",
            show_default="by the kind",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="That it runs on.")] = "auto",
) -> None:
    """Show what a control net will see of a picture."""
    from overpaint.imaging import hints  # import OpenCV
    from overpaint.imaging.output import check_writable, save_image

    asked = Control(kind=kind, estimator=estimator, options=options(option or []))
    check_writable(output)
    shown = hints.decode_control_image(kind, hint_source(kind, str(picture)))
    if kind != "pose":
        hints.check_hint(kind, asked.options)
        estimate = None
        if estimator or kind not in hints.HINT_FROM_PICTURE:
            estimate = _estimate(asked, device)
        shown = hints.make_hint(kind, shown, asked.options, estimate)
    save_image(shown, output, {})
    typer.echo(output)


def _estimate(asked: Control, device: str) -> "Estimate":
    """What sees the hint that is asked for."""
    from overpaint.models.devices import choose_device
    from overpaint.models.estimators import load_estimator
    from overpaint.models.library.catalog import DEFAULT_ESTIMATORS

    sight = HINTS[asked.kind].sight
    assert sight is not None  # or the hint is made without, and asking otherwise is refused
    name = asked.estimator or DEFAULT_ESTIMATORS[asked.kind]
    where = choose_device(device, "auto", None, small=True)
    with Terminal().waiting(f"loading {name}"):
        return load_estimator(name, sight, where.device, where.dtype).estimate


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what this machine will use, and what models need of it."""
    from overpaint.models import doctor

    report = doctor.inspect_machine()
    if as_json:
        typer.echo(json.dumps(asdict(report), default=str))
        return
    for line in report.lines():
        typer.echo(line)


@models.command("add")
def models_add(
    file: Annotated[Path, typer.Argument(help="A .safetensors file.", show_default=False)],
    name: Annotated[
        str | None, typer.Option(help="To call it.", show_default="the file's own")
    ] = None,
    license: Annotated[str | None, typer.Option(help="Of its weights.")] = None,
    old_license: Annotated[str | None, typer.Option("--licence", hidden=True)] = None,
) -> None:
    """Add a checkpoint, LoRA, control net or embedding: it is copied, and found by its name."""
    from overpaint.models.library.library import Library

    _show(Library(home()).add(file, name, license or old_license).model_dump())


@models.command("show")
def models_show(
    name: Annotated[str, typer.Argument(help="Of what was added.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what was added under a name: kind, keys, rank, trigger words, hash, metadata."""
    from overpaint.models.library.library import Library

    entry = Library(home()).find(name)
    if as_json:
        typer.echo(json.dumps(entry.model_dump() | {"path": str(entry.path)}))
        return
    _show(entry.model_dump() | {"path": entry.path})


@models.command("remove")
def models_remove(
    name: Annotated[str, typer.Argument(help="Of what was added.", show_default=False)],
) -> None:
    """Forget what was added under a name."""
    from overpaint.models.library.library import Library

    typer.echo(f"removed {Library(home()).remove(name).name}")


@models.command("pull")
def models_pull(
    name: Annotated[str, typer.Argument(help="A hub id or a known name.", show_default=False)],
) -> None:
    """Download a model from the hub."""
    from overpaint.models.library import catalog

    typer.echo(catalog.resolve_model(name))


def _show(facts: Mapping[str, Any]) -> None:
    width = max(map(len, facts))
    for key, value in facts.items():
        if value not in (None, (), {}, ""):
            shown = ", ".join(map(str, value)) if isinstance(value, tuple) else value
            typer.echo(f"{key:<{width}}  {shown}")


@models.command("list")
def models_list(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> None:
    """List the models that can be loaded, and what was added or ships beside them.

    Any SDXL folder, file or hub id can be loaded as well.
    """
    from overpaint.models.library import catalog
    from overpaint.models.library.library import Library, list_shipped

    entries = catalog.list_models()
    added = (*Library(home()).list_entries(), *list_shipped())
    if as_json:
        keys = ("name", "family", "license", "repository")
        rows = [
            {key: getattr(entry, key) for key in keys} | {"path": entry.path and str(entry.path)}
            for entry in entries
        ]
        rows += [
            {"name": e.name, "kind": e.kind, "license": e.license, "path": str(e.path)}
            for e in added
        ]
        typer.echo(json.dumps(rows))
        return
    width = max(len(entry.name) for entry in (*entries, *added))
    for entry in added:
        typer.echo(f"{entry.name:<{width}}  {entry.kind}, {entry.license or 'license not given'}")
    for entry in entries:
        state = entry.path or ("to be downloaded" if entry.repository else "not in this copy")
        typer.echo(f"{entry.name:<{width}}  {entry.family}, {entry.license}: {state}")
