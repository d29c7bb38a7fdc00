"""The commands that paint: edit, create, sweep."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overpaint.cli.settings import ON_PICTURES, given, home, numbers, takes_settings
from overpaint.cli.terminal import Terminal
from overpaint.errors import OutputError, RequestError
from overpaint.events import Finished, Notice, Step
from overpaint.imaging import codec, grid
from overpaint.picture import Picture
from overpaint.provenance import metadata
from overpaint.request import Request

if TYPE_CHECKING:
    from PIL.Image import Image

    from overpaint.models.model import Model

Source = Annotated[Path, typer.Argument(help="The picture to repaint.", show_default=False)]
Prompt = Annotated[
    str | None, typer.Argument(help="What to draw. Needed without --like.", show_default=False)
]


@dataclass(frozen=True)
class Common:
    """The options that all these commands take, besides the settings of the request."""

    like: Annotated[
        Path | None,
        typer.Option(
            help="Take prompt and settings from this picture; what else is given replaces them.",
            show_default=False,
        ),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Where to write: .png, .jpg or .webp; overwritten. Several are numbered from 0.",
            show_default="a new name here",
        ),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="A name, a folder, a .safetensors file or a hub id.",
            show_default="miniature",
        ),
    ] = None
    watermark: Annotated[
        bool,
        typer.Option("--watermark", help="Mark what is made, invisibly, as SDXL's own code does."),
    ] = False
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps or auto.")] = "auto"
    dtype: Annotated[str, typer.Option(help="bf16, fp16, fp32 or auto.")] = "auto"
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Nothing but errors on stderr.")] = (
        False
    )


@takes_settings(Common)
def edit(
    picture: Source, prompt: Prompt = None, *, common: Common, settings: dict[str, Any]
) -> None:
    """Repaint a picture as a prompt says."""
    terminal = Terminal(quiet=common.quiet)
    source = codec.read_picture(picture)
    found = _found(terminal, common.like, source)
    request = _request(found, source, prompt, settings)
    paths = _outputs(common.output, f"{picture.stem}-overpaint", request.num_images)
    _paint(terminal, request, found, paths, common)


@takes_settings(Common, without=ON_PICTURES)
def create(prompt: Prompt = None, *, common: Common, settings: dict[str, Any]) -> None:
    """Make a picture from a prompt alone."""
    terminal = Terminal(quiet=common.quiet)
    found = _found(terminal, common.like, None)
    request = _request(found, None, prompt, settings)
    paths = _outputs(common.output, "overpaint", request.num_images)
    _paint(terminal, request, found, paths, common)


@takes_settings(Common, without=("strength", "guidance_scale", "num_images"))
def sweep(
    picture: Source,
    prompt: Prompt = None,
    *,
    strength: Annotated[
        str, typer.Option("--strength", "-s", help="One column for each.")
    ] = "0.2,0.4,0.6,0.8",
    guidance: Annotated[
        str | None,
        typer.Option("--guidance", "-g", help="One row for each.", show_default="5.0"),
    ] = None,
    common: Common,
    settings: dict[str, Any],
) -> None:
    """Draw one labelled grid of strength by guidance, all from one seed."""
    terminal = Terminal(quiet=common.quiet)
    source = codec.read_picture(picture)
    found = _found(terminal, common.like, source)
    first = _request(found, source, prompt, settings)
    strengths = numbers("strength", strength)
    rows = (
        [{"guidance_scale": g} for g in numbers("guidance_scale", guidance)] if guidance else [{}]
    )
    # What is not given stays open: a LoRA may have settings of its own for it.
    asked = {name: getattr(first, name) for name in (*first.model_fields_set, "seed")}
    cells = [
        Request.model_validate({**asked, **row, "strength": column})
        for row in rows
        for column in strengths
    ]
    [path] = _outputs(common.output, f"{picture.stem}-sweep", 1)
    if path.suffix.lower() == ".webp":
        raise OutputError(f"{path}: a sweep may outgrow WebP's 16,383 pixels; use .png or .jpg")
    metadata.check_output(path, first)
    results, seconds = _run(terminal, cells, found, common)
    records = [result.metadata[0] for result in results]
    scales = tuple(r["request"]["guidance_scale"] for r in records[:: len(strengths)])
    sheet = grid.draw_sweep_grid([result.images[0] for result in results], strengths, scales)
    swept = {"strength": strengths, "guidance_scale": scales}
    sheet = _marked(terminal, path, sheet) if common.watermark else sheet
    metadata.write(sheet, path, {**records[0], "sweep": swept})
    _report(terminal, [path], [first.seed], sheet.size, seconds, records, common.as_json)


def _paint(
    terminal: Terminal,
    request: Request,
    found: metadata.Found | None,
    paths: Sequence[Path],
    common: Common,
) -> None:
    """Carry out one request, write its pictures and say so."""
    for path in paths:
        metadata.check_output(path, request)
    [result], seconds = _run(terminal, [request], found, common)
    for image, path, record in zip(result.images, paths, result.metadata, strict=True):
        made = _marked(terminal, path, image) if common.watermark else image
        metadata.write(made, path, record)
    size = result.images[0].size
    _report(terminal, paths, result.seeds, size, seconds, result.metadata, common.as_json)


def _marked(terminal: Terminal, path: Path, image: "Image") -> "Image":
    """A picture with its watermark; says so where it holds none."""
    from overpaint.provenance import watermark  # imports OpenCV

    made, why = watermark.marked(image)
    if why:
        terminal.note(f"{path}: {why}")
    return made


def _run(
    terminal: Terminal,
    requests: Sequence[Request],
    found: metadata.Found | None,
    common: Common,
) -> tuple[list[Finished], float]:
    """Load the model and carry out the requests; also the seconds that painting took."""
    import overpaint  # load() imports torch
    from overpaint.imaging import canvas  # imports OpenCV

    name, dtype = common.model, common.dtype
    ours = found and found.record
    if name is None:
        name = ours["model"]["name"] if ours else "miniature"
        if found and not ours and found.model:
            terminal.note(f"the settings are for the model {found.model!r}; this is {name!r}.")
    if dtype == "auto" and ours:
        dtype = ours["model"].get("dtype") or dtype
    canvas.check_pictures(requests[0])  # all share their picture
    loaded: dict[str, Model] = {}
    with terminal.waiting(f"loading {name}"):
        painter = overpaint.load(name, device=common.device, dtype=dtype, home=home())
        loaded["model"] = painter.model
    with terminal.waiting("loading what goes with it"):
        if refiner := painter.addon_loader.load(requests[0]).refiner:
            loaded["refiner"] = refiner
    for part, model in loaded.items():
        if ours and ours.get(part) and ours[part]["sha256"] != model.sha256:
            terminal.note(
                f"the {part}'s weights are not those that made the picture; pixels may differ."
            )
    results: list[Finished] = []
    start = perf_counter()
    with terminal.progress(len(requests)) as bar:
        for index, request in enumerate(requests):
            for event in painter.stream(request):
                match event:
                    case Notice(message):
                        terminal.note(message)
                    case Step():
                        bar.show(index, event)
                    case Finished():
                        results.append(event)
                    case _:
                        pass
    seconds = perf_counter() - start
    for what, files in {"LoRA": "loras", "control net": "nets", "embedding": "embeddings"}.items():
        before = ours.get(f"{files}_sha256", {}) if ours else {}
        for name, digest in results[0].metadata[0][f"{files}_sha256"].items():
            if name in before and before[name] != digest:
                terminal.note(
                    f"the {what} {name} is not the file that made the picture; pixels may differ."
                )
    return results, seconds


def _found(terminal: Terminal, like: Path | None, source: Picture | None) -> metadata.Found | None:
    """What `--like` points to, with notes on what will not be the same."""
    if like is None:
        return None
    found = metadata.read(like)
    for note in found.notes:
        terminal.note(note)
    if found.record and "sweep" in found.record:
        terminal.note("this is a sweep; the settings are those of its first cell.")
    recorded = found.record and found.record.get("input_sha256")
    if recorded and source and recorded != source.sha256:
        terminal.note("the picture is not the one that the settings were used on.")
    return found


def _request(
    found: metadata.Found | None,
    source: Picture | None,
    prompt: str | None,
    settings: dict[str, Any],
) -> Request:
    fields = given(settings)
    if prompt is not None:
        fields["prompt"] = prompt
    if found:
        return metadata.to_request(found, source, **fields)
    if prompt is None:
        raise RequestError("prompt", "say what to draw, or give --like FILE.")
    return Request.model_validate({**fields, "image": source})


def _outputs(output: Path | None, stem: str, pictures: int) -> list[Path]:
    """Where the pictures go: as asked, or here under a name that is free."""
    if output:
        return _numbered(output, pictures)
    for attempt in count(1):
        paths = _numbered(
            Path(f"{stem}.png" if attempt == 1 else f"{stem}-{attempt}.png"), pictures
        )
        if not any(path.exists() for path in paths):
            return paths
    raise AssertionError("count() does not end")


def _numbered(path: Path, pictures: int) -> list[Path]:
    if pictures == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(pictures)]


def _report(
    terminal: Terminal,
    paths: Sequence[Path],
    seeds: Sequence[int],
    size: tuple[int, int],
    seconds: float,
    records: Sequence[dict[str, Any]],
    as_json: bool,
) -> None:
    if as_json:
        result = {
            "outputs": [str(path) for path in paths],
            "seeds": list(seeds),
            "size": list(size),
            "seconds": round(seconds, 3),
            "notices": terminal.notes,
            "metadata": list(records),
        }
        typer.echo(json.dumps(result))
        return
    for path in paths:
        typer.echo(path)
    terminal.say(f"{size[0]}x{size[1]}, seed {', '.join(map(str, seeds))}, {seconds:.1f} s")
