"""`overpaint keys`: the API keys of a server."""

import json
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from overpaint.cli.terminal import echo
from overpaint.server.settings import DATA_FOLDER

if TYPE_CHECKING:
    from overpaint.server.store.api_keys import ApiKeys

app = typer.Typer(
    help="Create, list and revoke API keys. A running server applies changes within seconds.",
    no_args_is_help=True,
)

Data = Annotated[Path, typer.Option(help="Data folder of the server.")]
Store = Annotated[
    str | None, typer.Option(help="URL of the job store, if it is on Postgres.", show_default=False)
]


@app.command()
def create(
    name: Annotated[
        str | None, typer.Option(help="Name of the key.", show_default="start of its SHA-256")
    ] = None,
    data: Data = DATA_FOLDER,
    store: Store = None,
) -> None:
    """Create a key and print it. The store keeps only its SHA-256.

    Once a key exists, clients must send one.
    """
    with _open_keys(data, store) as keys:
        echo(keys.create(name))


@app.command("list")
def list_keys(
    data: Data = DATA_FOLDER,
    store: Store = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> None:
    """List the keys, oldest first."""
    with _open_keys(data, store) as keys:
        found = keys.list_keys()
    if as_json:
        typer.echo(json.dumps([asdict(key) for key in found]))
        return
    width = max((len(key.name) for key in found), default=0)
    for key in found:
        revoked = f"  revoked {_format_date(key.revoked)}" if key.revoked is not None else ""
        echo(f"{key.name:<{width}}  created {_format_date(key.created)}{revoked}")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Name of the key.", show_default=False)],
    data: Data = DATA_FOLDER,
    store: Store = None,
) -> None:
    """Revoke a key. Its running jobs finish, but their results become inaccessible."""
    with _open_keys(data, store) as keys:
        keys.revoke(name)
    echo(f"revoked {name}")


def _open_keys(data: Path, store: str | None) -> "AbstractContextManager[ApiKeys]":
    from overpaint.server.store.api_keys import open_api_keys
    from overpaint.server.store.database import get_store_url
    from overpaint.server.store.files import prepare_data_folder

    if store is None:
        prepare_data_folder(data)
    return open_api_keys(get_store_url(data, store))


def _format_date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
