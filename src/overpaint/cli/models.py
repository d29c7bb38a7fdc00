"""`overpaint models`: the models that can be loaded."""

import json
from pathlib import Path
from typing import Annotated

import typer

from overpaint.cli.environment import MODELS_DIR_HELP, read_home, read_models_dirs
from overpaint.cli.terminal import echo, escape_control_characters, explain_interrupt, print_facts
from overpaint.errors import ModelError, OutputError, OverpaintError, RequestError

app = typer.Typer(
    help="Add, download, list and remove models, LoRAs, ControlNets and embeddings.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(help="Name of an added file.", show_default=False)]
ModelsDirs = Annotated[
    list[Path] | None,
    typer.Option("--models-dir", help=MODELS_DIR_HELP, show_default="OVERPAINT_MODELS_DIRS"),
]


@app.command()
def add(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Safetensors files, PEFT folders, or folders with such files.",
            show_default=False,
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(help="Name for requests, of one file.", show_default="the name of the file"),
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(help="License of the weights.", show_default="as in the file's metadata"),
    ] = None,
    old_license: Annotated[str | None, typer.Option("--licence", hidden=True)] = None,
) -> None:
    """Copy checkpoints, LoRAs, ControlNets and embeddings into the library of models."""
    from overpaint.models.library.library import Library
    from overpaint.models.library.sources import list_sources

    library, sources = Library(read_home()), list_sources(files)
    license = license or old_license
    added: list[str] = []
    if len(sources) == 1:
        with explain_interrupt(added):
            entry = library.add(sources[0], name, license)
        print_facts(entry.model_dump())
        return
    if name is not None:
        raise RequestError("name", f"{len(sources)} files cannot have one name. Leave it out.")
    failures: list[OverpaintError] = []
    for source in sources:
        try:
            with explain_interrupt(added):
                entry = library.add(source, None, license)
                added.append(entry.name)
        except (ModelError, OutputError) as error:
            failures.append(error)
            typer.echo(f"not added: {escape_control_characters(error)}", err=True)
        else:
            echo(f"added {entry.name}: {entry.kind}")
    if failures:
        raise typer.Exit(failures[0].exit_code)


@app.command()
def show(
    name: Name,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    models_dirs: ModelsDirs = None,
) -> None:
    """Show an added file: kind, keys, rank, trigger words, hash and metadata."""
    from overpaint.models.library.library import Library

    entry = Library(read_home(), read_models_dirs(models_dirs)).find(name)
    if as_json:
        typer.echo(json.dumps(entry.model_dump() | {"path": str(entry.path)}))
        return
    print_facts(entry.model_dump() | {"path": entry.path})


@app.command()
def remove(name: Name) -> None:
    """Remove an added file from the library of models."""
    from overpaint.models.library.library import Library

    echo(f"removed {Library(read_home()).remove(name).name}")


@app.command()
def pull(
    name: Annotated[
        str, typer.Argument(help="A Hugging Face Hub id or a known name.", show_default=False)
    ],
) -> None:
    """Download a model from the Hugging Face Hub."""
    from overpaint.models.library import catalog

    echo(catalog.resolve_model(name))


@app.command("list")
def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
    models_dirs: ModelsDirs = None,
) -> None:
    """List known and added models, and the LoRAs, ControlNets and embeddings beside them.

    Overpaint also loads any other SDXL folder, file or Hugging Face Hub id.
    """
    from overpaint.models.library import catalog
    from overpaint.models.library.library import Library, list_shipped

    entries = catalog.list_models()
    library = Library(read_home(), read_models_dirs(models_dirs))
    added = (*library.list_entries(), *list_shipped())
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
        echo(f"{entry.name:<{width}}  {entry.kind}, {entry.license or 'no license given'}")
    for entry in entries:
        state = entry.path or ("not downloaded" if entry.repository else "not in this copy")
        echo(f"{entry.name:<{width}}  {entry.family}, {entry.license}: {state}")
