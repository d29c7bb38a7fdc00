"""`overpaint keys`: who may use a server."""

import json
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from overpaint.server.settings import DATA_FOLDER

if TYPE_CHECKING:
    from overpaint.server.store.api_keys import Keys

app = typer.Typer(
    help="Keys that a server's clients must give; it heeds changes while it runs.",
    no_args_is_help=True,
)

Data = Annotated[Path, typer.Option(help="Folder of the server.")]
Store = Annotated[
    str | None, typer.Option(help="Its job store, if that is on Postgres.", show_default=False)
]


@app.command()
def create(
    name: Annotated[
        str | None, typer.Option(help="To know it by.", show_default="by its digest")
    ] = None,
    data: Data = DATA_FOLDER,
    store: Store = None,
) -> None:
    """Make a key and print it: only its SHA-256 is kept. From the first on, one must be given."""
    with _opened(data, store) as keys:
        typer.echo(keys.create(name))


@app.command("list")
def listing(
    data: Data = DATA_FOLDER,
    store: Store = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> None:
    """List the keys, the oldest first."""
    with _opened(data, store) as keys:
        found = keys.all()
    if as_json:
        typer.echo(json.dumps([asdict(key) for key in found]))
        return
    width = max((len(key.name) for key in found), default=0)
    for key in found:
        revoked = f"  revoked {_date(key.revoked)}" if key.revoked is not None else ""
        typer.echo(f"{key.name:<{width}}  created {_date(key.created)}{revoked}")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Of the key.", show_default=False)],
    data: Data = DATA_FOLDER,
    store: Store = None,
) -> None:
    """Have a key open nothing more. Its jobs go on, and are nobody else's."""
    with _opened(data, store) as keys:
        keys.revoke(name)
    typer.echo(f"revoked {name}")


def _opened(data: Path, store: str | None) -> "AbstractContextManager[Keys]":
    from overpaint.server.store.api_keys import opened
    from overpaint.server.store.database import url_of

    if store is None:
        data.mkdir(parents=True, exist_ok=True)
    return opened(url_of(data, store))


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
