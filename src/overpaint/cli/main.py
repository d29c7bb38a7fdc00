"""The entry point `overpaint`: commands, exit codes and error messages."""

import errno
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overpaint.cli import keys, models
from overpaint.cli.bench import bench
from overpaint.cli.commands import HintingCommand
from overpaint.cli.doctor import doctor
from overpaint.cli.messages import format_message
from overpaint.cli.outputs import make_folder
from overpaint.cli.paint import create, edit, sweep, upscale
from overpaint.cli.serve import serve
from overpaint.cli.syntax import parse_options, read_hint_source, read_picture
from overpaint.cli.terminal import (
    Terminal,
    discard_broken_stdout,
    echo,
    print_error,
    print_facts,
)
from overpaint.cli.usage import usage
from overpaint.errors import OutputError, OverpaintError, PictureError, RequestError
from overpaint.registry import HINTS
from overpaint.request.parts import Control

if TYPE_CHECKING:
    from overpaint.imaging.hints import Estimate

ANY_ARGUMENTS = {"ignore_unknown_options": True, "allow_extra_args": True}
"""Settings of a command that only says what to use in its place."""

WATERMARKED = "SDXL's, invisible"

app = typer.Typer(
    help="Repaint pictures with Stable Diffusion XL on your own hardware.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command(cls=HintingCommand)(edit)
app.command(cls=HintingCommand)(create)
app.command(cls=HintingCommand)(sweep)
app.command(cls=HintingCommand)(serve)
app.command(cls=HintingCommand)(bench)
app.add_typer(models.app, name="models")
app.add_typer(keys.app, name="keys")
app.command()(doctor)
app.command()(usage)
app.command(hidden=True, context_settings=ANY_ARGUMENTS)(upscale)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its exit code.

    The exit code is 0 for success, 2 for invalid arguments, 130 after an interrupt, or the code of
    the error's class (see `overpaint.errors`). Any other exception is a defect and shows its
    traceback.
    """
    try:
        app(arguments, prog_name="overpaint")
    except OverpaintError as error:
        print_error(format_message(error))
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            name = str(error.filename)[:60]
            print_error(f"{name}…: too long for a file name. Give pictures, then the prompt.")
            raise SystemExit(2) from None
        if not discard_broken_stdout(error):
            raise
        print_error(f"stdout cannot be written: {error.strerror}. Free space, or write elsewhere.")
        raise SystemExit(OutputError.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        from overpaint import __version__

        echo(f"overpaint {__version__}")
        raise typer.Exit


@app.callback()
def _overpaint(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    del version  # The callback printed it.


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="The picture.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the settings in a picture's metadata, and whether it has a watermark.

    Reads the metadata of Overpaint, A1111, Civitai, ComfyUI, Fooocus, InvokeAI, NovelAI, SD.Next
    and SwarmUI.
    """
    from overpaint.imaging import codec
    from overpaint.provenance import metadata, watermark  # import OpenCV

    mark = {"watermark": watermark.has_watermark(codec.decode(read_picture(str(file))))}
    try:
        found = metadata.read_settings(file)
    except PictureError:
        if not mark["watermark"]:
            raise
        if as_json:
            typer.echo(json.dumps(mark))
        else:
            print_facts({"watermark": WATERMARKED})
        return
    if as_json:
        keys = ("program", "model", "fields", "notes", "record")
        typer.echo(json.dumps({key: getattr(found, key) for key in keys} | mark))
        return
    facts: dict[str, Any] = {"made by": found.program, "model": found.model or "unknown"}
    facts |= found.fields
    if found.record:
        facts |= _describe_record(found.record)
    facts["watermark"] = WATERMARKED if mark["watermark"] else "none"
    print_facts(facts)
    for note in found.notes:
        echo(f"note: {note}")


def _describe_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of Overpaint's record beside the request, under the names of `info`."""
    width, height = record["size"]
    swept = {"sweep of": ", ".join(record["sweep"])} if "sweep" in record else {}
    files = {
        f"{kind} {name}": digest["file"] if isinstance(digest, dict) else digest
        for kind, key in (("LoRA", "loras"), ("ControlNet", "nets"), ("embedding", "embeddings"))
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
    kind: Annotated[
        str, typer.Argument(help=f"Kind of control image: {', '.join(HINTS)}.", show_default=False)
    ],
    picture: Annotated[
        str,
        typer.Argument(
            help="The picture: a file, a URL or - for stdin. For a pose, its keypoints.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    option: Annotated[
        list[str] | None,
        typer.Option(help="Option of the kind, such as low=50.", show_default=False),
    ] = None,
    estimator: Annotated[
        str | None,
        typer.Option(
            help="Network that estimates depth or classes: a name, a folder or a hub id.",
            show_default="depends on the kind",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Device of the estimator: cpu, cuda, cuda:1, mps or auto.")
    ] = "auto",
) -> None:
    """Make the control image that a ControlNet receives."""
    from overpaint.imaging import hints  # import OpenCV
    from overpaint.imaging.output import check_writable, save_image

    asked = Control(kind=kind, estimator=estimator, options=parse_options(option or []))
    make_folder(output.parent)
    check_writable(output)
    shown = hints.decode_control_image(kind, read_hint_source(kind, picture))
    if kind != "pose":
        hints.check_hint(kind, asked.options)
        estimate = None
        if estimator or kind not in hints.HINT_FROM_PICTURE:
            estimate = _estimate(asked, device)
        shown = hints.make_hint(kind, shown, asked.options, estimate)
    if dark := hints.describe_dark_hint(kind, shown):
        Terminal().note(dark)
    save_image(shown, output, {})
    echo(output)


def _estimate(asked: Control, device: str) -> "Estimate":
    """Return the estimator for a control image."""
    from overpaint.models.devices import choose_device
    from overpaint.models.estimators import load_estimator
    from overpaint.models.library.catalog import DEFAULT_ESTIMATORS

    sight = HINTS[asked.kind].sight
    if sight is None:
        raise RequestError("kind", f"No estimator can make {asked.kind} hints. Give another kind.")
    name = asked.estimator or DEFAULT_ESTIMATORS[asked.kind]
    where = choose_device(device, "auto", None, small=True)
    with Terminal().waiting(f"loading {name}"):
        return load_estimator(name, sight, where.device, where.dtype).estimate
