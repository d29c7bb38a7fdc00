"""The commands that paint: `overpaint edit`, `create` and `sweep`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overpaint.cli.environment import MODELS_DIR_HELP, read_home, read_models_dirs
from overpaint.cli.settings import (
    IMAGE_FIELDS,
    TEXT_FIELDS,
    add_settings,
    read_fields,
)
from overpaint.cli.syntax import parse_numbers, read_picture
from overpaint.cli.terminal import Terminal, echo
from overpaint.errors import OutputError, RequestError
from overpaint.events import Finished, Notice, Step
from overpaint.picture import Picture
from overpaint.request import Request
from overpaint.system.processors import set_threads

if TYPE_CHECKING:
    from PIL.Image import Image

    from overpaint.models.model import Model
    from overpaint.provenance.importers.collector import ImportedSettings

Source = Annotated[Path, typer.Argument(help="The picture to repaint.", show_default=False)]
Prompt = Annotated[
    str | None,
    typer.Argument(
        help="The picture to paint, in words. Required without --like.", show_default=False
    ),
]


NO_PLAIN_UPSCALE = (
    "Overpaint cannot enlarge a picture without a prompt. With a prompt, --upscale repaints the "
    "picture and enlarges it by 1 to 4."
)


@dataclass(frozen=True)
class Common:
    """The options of all these commands, beside the fields of the request."""

    like: Annotated[
        Path | None,
        typer.Option(
            help="Picture that gives prompt and settings; other options override them.",
            show_default=False,
        ),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write or overwrite: .png, .jpg or .webp. Several are numbered from 0.",
            show_default="a new file in this folder",
        ),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Model: a name, a folder, a .safetensors file or a hub id.",
            show_default="miniature",
        ),
    ] = None
    models_dirs: Annotated[
        list[Path] | None,
        typer.Option("--models-dir", help=MODELS_DIR_HELP, show_default="OVERPAINT_MODELS_DIRS"),
    ] = None
    watermark: Annotated[
        bool,
        typer.Option("--watermark", help="Add SDXL's invisible watermark."),
    ] = False
    device: Annotated[str, typer.Option(help="Device: cpu, cuda, cuda:1, mps or auto.")] = "auto"
    threads: Annotated[
        int | None,
        typer.Option(
            help="Processor threads that compute. The default follows the affinity and the cgroup "
            "quota of the process.",
            min=1,
            max=1024,
            show_default="OMP_NUM_THREADS, or one for each usable core",
        ),
    ] = None
    dtype: Annotated[
        str, typer.Option(help="Number format of the weights: bf16, fp16, fp32 or auto.")
    ] = "auto"
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors on stderr.")] = (
        False
    )


@add_settings(Common, without=TEXT_FIELDS)
def edit(
    picture: Source, prompt: Prompt = None, *, common: Common, settings: dict[str, Any]
) -> None:
    """Repaint a picture according to a prompt."""
    terminal = Terminal(quiet=common.quiet)
    source = read_picture(picture)
    found = _read_like(terminal, common.like, source)
    request = _build_request(found, source, prompt, settings)
    paths = _choose_outputs(common.output, f"{picture.stem}-overpaint", request.num_images)
    _paint(terminal, request, found, paths, common)


@add_settings(Common, without=IMAGE_FIELDS)
def create(prompt: Prompt = None, *, common: Common, settings: dict[str, Any]) -> None:
    """Create a picture from a prompt alone."""
    terminal = Terminal(quiet=common.quiet)
    found = _read_like(terminal, common.like, None)
    request = _build_request(found, None, prompt, settings)
    paths = _choose_outputs(common.output, "overpaint", request.num_images)
    _paint(terminal, request, found, paths, common)


@add_settings(Common, without=("strength", "guidance_scale", "num_images", *TEXT_FIELDS))
def sweep(
    picture: Source,
    prompt: Prompt = None,
    *,
    strength: Annotated[
        str, typer.Option("--strength", "-s", help="Strengths, one column for each.")
    ] = "0.2,0.4,0.6,0.8",
    guidance: Annotated[
        str | None,
        typer.Option(
            "--guidance", "-g", help="Guidance scales, one row for each.", show_default="5.0"
        ),
    ] = None,
    common: Common,
    settings: dict[str, Any],
) -> None:
    """Draw a labeled grid of strengths and guidance scales with one seed."""
    from overpaint.imaging import grid
    from overpaint.provenance import metadata

    terminal = Terminal(quiet=common.quiet)
    source = read_picture(picture)
    found = _read_like(terminal, common.like, source)
    first = _build_request(found, source, prompt, settings)
    strengths = parse_numbers("strength", strength)
    rows = (
        [{"guidance_scale": g} for g in parse_numbers("guidance_scale", guidance)]
        if guidance
        else [{}]
    )
    # Fields that are not given stay unset, because a LoRA may bring its own values for them.
    asked = {name: getattr(first, name) for name in (*first.model_fields_set, "seed")}
    cells = [
        Request.model_validate({**asked, **row, "strength": column})
        for row in rows
        for column in strengths
    ]
    [path] = _choose_outputs(common.output, f"{picture.stem}-sweep", 1)
    if path.suffix.lower() == ".webp":
        raise OutputError(
            f"{path}: A sweep may exceed WebP's limit of 16,383 pixels. Use .png or .jpg."
        )
    metadata.check_output(path, first)
    results, seconds = _run(terminal, cells, found, common)
    records = [result.metadata[0] for result in results]
    scales = tuple(r["request"]["guidance_scale"] for r in records[:: len(strengths)])
    sheet = grid.draw_sweep_grid([result.images[0] for result in results], strengths, scales)
    swept = {"strength": strengths, "guidance_scale": scales}
    sheet = _add_watermark(terminal, path, sheet) if common.watermark else sheet
    metadata.write_picture(sheet, path, {**records[0], "sweep": swept})
    _report(terminal, [path], [first.seed], sheet.size, seconds, records, common.as_json)


def upscale() -> None:
    """Say how to enlarge a picture; there is no network that enlarges without a prompt yet."""
    raise RequestError(
        "command",
        f"There is no `overpaint upscale` yet. {NO_PLAIN_UPSCALE} For example: overpaint edit "
        'PICTURE "a harbor at dusk" --strength 0.3 --upscale 2',
    )


def _paint(
    terminal: Terminal,
    request: Request,
    found: "ImportedSettings | None",
    paths: Sequence[Path],
    common: Common,
) -> None:
    """Run one request, write its pictures and report their paths."""
    from overpaint.provenance import metadata

    for path in paths:
        metadata.check_output(path, request)
    [result], seconds = _run(terminal, [request], found, common)
    for image, path, record in zip(result.images, paths, result.metadata, strict=True):
        made = _add_watermark(terminal, path, image) if common.watermark else image
        metadata.write_picture(made, path, record)
    size = result.images[0].size
    _report(terminal, paths, result.seeds, size, seconds, result.metadata, common.as_json)


def _add_watermark(terminal: Terminal, path: Path, image: "Image") -> "Image":
    """Return a picture with a watermark; note it if the picture is too small for one."""
    from overpaint.provenance import watermark  # imports OpenCV

    made, why = watermark.add_watermark(image)
    if why:
        terminal.note(f"{path}: {why}")
    return made


def _run(
    terminal: Terminal,
    requests: Sequence[Request],
    found: "ImportedSettings | None",
    common: Common,
) -> tuple[list[Finished], float]:
    """Load the model and run the requests; return their results and the seconds of painting."""
    set_threads(common.threads)

    import overpaint  # load() imports torch
    from overpaint.imaging import canvas  # imports OpenCV

    name, dtype = common.model, common.dtype
    record = found.record if found else None
    if name is None:
        name = record["model"]["name"] if record else "miniature"
        if found and not record and found.model:
            terminal.note(f"the settings are for the model {found.model!r}, not for {name!r}.")
    if dtype == "auto" and record:
        dtype = record["model"].get("dtype") or dtype
    canvas.check_pictures(requests[0])  # all requests share one picture
    loaded: dict[str, Model] = {}
    with terminal.waiting(f"loading {name}"):
        painter = overpaint.load(
            name,
            device=common.device,
            dtype=dtype,
            home=read_home(),
            models_dirs=read_models_dirs(common.models_dirs),
        )
        loaded["model"] = painter.model
    with terminal.waiting("loading refiner, ControlNets and LoRAs"):
        if refiner := painter.addon_loader.load(requests[0]).refiner:
            loaded["refiner"] = refiner
    for part, model in loaded.items():
        if record and record.get(part) and record[part]["sha256"] != model.sha256:
            terminal.note(
                f"the weights of the {part} differ from those that made the picture; "
                "pixels may differ."
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
    for what, files in {"LoRA": "loras", "ControlNet": "nets", "embedding": "embeddings"}.items():
        before = record.get(f"{files}_sha256", {}) if record else {}
        for name, digest in results[0].metadata[0][f"{files}_sha256"].items():
            if name in before and before[name] != digest:
                terminal.note(
                    f"the {what} {name} differs from the file that made the picture; "
                    "pixels may differ."
                )
    return results, seconds


def _read_like(
    terminal: Terminal, like: Path | None, source: Picture | None
) -> "ImportedSettings | None":
    """Read the settings of the `--like` picture; note the differences from this run."""
    if like is None:
        return None
    from overpaint.provenance import metadata

    found = metadata.read_settings(like)
    for note in found.notes:
        terminal.note(note)
    if found.record and "sweep" in found.record:
        terminal.note("the --like picture is a sweep; the settings are those of its first cell.")
    recorded = found.record and found.record.get("input_sha256")
    if recorded and source and recorded != source.sha256:
        terminal.note("the settings were used on another picture.")
    return found


def _build_request(
    found: "ImportedSettings | None",
    source: Picture | None,
    prompt: str | None,
    settings: dict[str, Any],
) -> Request:
    fields = read_fields(settings)
    if prompt is not None:
        fields["prompt"] = prompt
    if found:
        from overpaint.provenance import metadata

        return metadata.to_request(found, source, **fields)
    if prompt is None:
        enlarges = fields.keys() & {"upscale", "upscale_to"}
        raise RequestError(
            "prompt",
            "It is missing. Give a prompt, or --like FILE."
            + (f" {NO_PLAIN_UPSCALE}" if enlarges else ""),
        )
    return Request.model_validate({**fields, "image": source})


def _choose_outputs(output: Path | None, stem: str, pictures: int) -> list[Path]:
    """Return the files to write: the given one, or unused names in this folder."""
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
        echo(path)
    terminal.say(f"{size[0]}x{size[1]}, seed {', '.join(map(str, seeds))}, {seconds:.1f} s")
