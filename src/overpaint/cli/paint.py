"""The commands that paint: `overpaint edit`, `create` and `sweep`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overpaint.cli.common import Common
from overpaint.cli.messages import format_message
from overpaint.cli.outputs import Outputs
from overpaint.cli.painting import Session, report
from overpaint.cli.settings import IMAGE_FIELDS, TEXT_FIELDS, add_settings, read_fields
from overpaint.cli.sources import Source, list_sources, split_prompt
from overpaint.cli.syntax import parse_numbers
from overpaint.cli.terminal import Terminal, explain_interrupt, print_error
from overpaint.errors import OutputError, OverpaintError, PictureError, RequestError
from overpaint.picture import Picture
from overpaint.request import Request

if TYPE_CHECKING:
    from overpaint.provenance.importers.collector import ImportedSettings

Pictures = Annotated[
    list[str] | None,
    typer.Argument(
        help="The pictures to repaint: files, folders, URLs, or - for stdin.",
        metavar="PICTURE...",
        show_default=False,
    ),
]
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


@add_settings(Common, without=TEXT_FIELDS)
def edit(
    pictures: Pictures = None, prompt: Prompt = None, *, common: Common, settings: dict[str, Any]
) -> None:
    """Repaint pictures according to a prompt, with one model for all of them."""
    words, prompt = _split_words(pictures, prompt)
    terminal = Terminal(quiet=common.quiet)
    sources = list_sources(words, terminal.note)
    outputs = Outputs(common.output, len(sources))
    found = _read_like(terminal, common.like)
    fields = read_fields(settings)
    session = Session(terminal, common, found, len(sources))
    failures: list[OverpaintError] = []
    for source in sources:
        try:
            picture = source.read()
            request = _build_request(found, picture, prompt, fields)
            _note_other_input(terminal, found, picture)
            _paint(session, request, f"{source.stem}-overpaint", outputs)
        except (PictureError, RequestError) as error:
            if len(sources) == 1 or (isinstance(error, RequestError) and not session.painted):
                raise
            failures.append(error)
            print_error(f"{source.text} is not painted: {format_message(error)}")
    if failures:
        print_error(f"{len(failures)} of {len(sources)} pictures are not painted.")
        raise typer.Exit(failures[0].exit_code)


@add_settings(Common, without=IMAGE_FIELDS)
def create(prompt: Prompt = None, *, common: Common, settings: dict[str, Any]) -> None:
    """Create a picture from a prompt alone."""
    terminal = Terminal(quiet=common.quiet)
    found = _read_like(terminal, common.like)
    request = _build_request(found, None, prompt, read_fields(settings))
    _paint(Session(terminal, common, found), request, "overpaint", Outputs(common.output))


@add_settings(Common, without=("strength", "guidance_scale", "num_images", *TEXT_FIELDS))
def sweep(
    picture: Annotated[
        str,
        typer.Argument(
            help="The picture to repaint: a file, a URL, or - for stdin.", show_default=False
        ),
    ],
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

    terminal = Terminal(quiet=common.quiet)
    source = Source(picture)
    image = source.read()
    found = _read_like(terminal, common.like)
    _note_other_input(terminal, found, image)
    first = _build_request(found, image, prompt, read_fields(settings))
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
    if Path(common.output or "").suffix.lower() == ".webp":
        raise OutputError(
            f"{common.output}: A sweep may exceed WebP's limit of 16,383 pixels. Use .png or .jpg."
        )
    outputs, stem = Outputs(common.output), f"{source.stem}-sweep"
    outputs.check(stem, first)
    session = Session(terminal, common, found, len(cells))
    with explain_interrupt(outputs.saved):
        painted = [session.paint(cell) for cell in cells]
    records = [one.result.metadata[0] for one in painted]
    scales = tuple(r["request"]["guidance_scale"] for r in records[:: len(strengths)])
    sheet = grid.draw_sweep_grid([one.result.images[0] for one in painted], strengths, scales)
    swept = {"strength": strengths, "guidance_scale": scales}
    sheet = session.finish(stem, sheet)
    paths = outputs.write(stem, [sheet], [{**records[0], "sweep": swept}])
    seconds = sum(one.seconds for one in painted)
    report(terminal, paths, [first.seed], sheet.size, seconds, records, common.as_json)


def upscale() -> None:
    """Say how to enlarge a picture; there is no network that enlarges without a prompt yet."""
    raise RequestError(
        "command",
        f"There is no `overpaint upscale` yet. {NO_PLAIN_UPSCALE} For example: overpaint edit "
        'PICTURE "a harbor at dusk" --strength 0.3 --upscale 2',
    )


def _paint(session: Session, request: Request, stem: str, outputs: Outputs) -> None:
    """Run one request, write its pictures and report their paths."""
    common = session.common
    if common.as_json and outputs.to_stdout:
        raise RequestError(
            "output", "- writes the picture to stdout, where --json prints. Leave one of them out."
        )
    outputs.check(stem, request)
    with explain_interrupt(outputs.saved):
        painted = session.paint(request)
        result = painted.result
        images = [session.finish(stem, image) for image in result.images]
        paths = outputs.write(stem, images, result.metadata)
    size = images[0].size
    report(
        session.terminal, paths, result.seeds, size, painted.seconds, result.metadata,
        common.as_json,
    )  # fmt: skip


def _split_words(
    pictures: list[str] | None, prompt: str | None
) -> tuple[Sequence[str], str | None]:
    return split_prompt([*(pictures or ()), *(() if prompt is None else (prompt,))])


def _read_like(terminal: Terminal, like: Path | None) -> "ImportedSettings | None":
    """Read the settings of the `--like` picture, and print its notes."""
    if like is None:
        return None
    from overpaint.provenance import metadata

    found = metadata.read_settings(like)
    for note in found.notes:
        terminal.note(note)
    if found.record and "sweep" in found.record:
        terminal.note("the --like picture is a sweep; the settings are those of its first cell.")
    return found


def _note_other_input(
    terminal: Terminal, found: "ImportedSettings | None", picture: Picture
) -> None:
    """Note that the settings of the `--like` picture were used on another picture."""
    recorded = found and found.record and found.record.get("input_sha256")
    if recorded and recorded != picture.sha256:
        terminal.note("the settings were used on another picture.")


def _build_request(
    found: "ImportedSettings | None",
    source: Picture | None,
    prompt: str | None,
    fields: dict[str, Any],
) -> Request:
    if prompt is not None:
        fields = {**fields, "prompt": prompt}
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
