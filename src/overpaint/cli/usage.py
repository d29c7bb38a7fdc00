"""`overpaint usage`: what keys have used, for whoever sends them bills."""

import csv
import sys
from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from overpaint.errors import RequestError, StoreError
from overpaint.server.settings import DATA_FOLDER

if TYPE_CHECKING:
    from overpaint.server.store.usage import Total

COUNTS = ("jobs", "pictures", "megapixel_steps", "device_seconds")
NO_KEY = "(no key)"


def _price(text: str) -> Decimal:
    try:
        price = Decimal(text)
    except InvalidOperation:
        price = Decimal("nan")
    if not price.is_finite() or price < 0:
        raise typer.BadParameter(f"{text!r} is no price, such as 0.02.")
    return price


def usage(
    data: Annotated[Path, typer.Option(help="Folder of the server.")] = DATA_FOLDER,
    store: Annotated[
        str | None, typer.Option(help="Its job store, if that is on Postgres.", show_default=False)
    ] = None,
    by: Annotated[
        Literal["key", "day", "model"], typer.Option(help="What there is a line for.")
    ] = "key",
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The first day, in UTC.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The last day, in UTC.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Name of the only key that counts.", show_default=False)
    ] = None,
    price: Annotated[
        Decimal | None, typer.Option(parser=_price, metavar="AMOUNT", help="Of a picture.")
    ] = None,
    currency: Annotated[
        str | None, typer.Option(help="That the price is in, such as EUR.", show_default=False)
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, without a total.")] = False,
) -> None:
    """Say what keys have used: pictures, megapixel-steps, seconds of the device."""
    if since and until and until < since:
        raise RequestError("until", f"{until:%Y-%m-%d} is before {since:%Y-%m-%d}.")
    if currency and price is None:
        raise RequestError("price", f"say how many {currency} a picture costs.")
    found = _totals(data, store, by, _day(since), _day(until), key)
    if as_csv:
        heading = [by, *COUNTS, *(["amount"] * (price is not None))]
        rows = [[one.name, *_cells(one, price, 6)] for one in found]
        if currency:
            rows = [[*row, currency] for row in rows]
            heading.append("currency")
        csv.writer(sys.stdout, lineterminator="\n").writerows([heading, *rows])
        return
    priced = [] if price is None else [currency or "amount"]
    lines = [[by, *(name.replace("_", "-") for name in COUNTS), *priced]]
    lines += [[one.name or NO_KEY, *_cells(one, price, 3)] for one in found]
    lines += [["total", *_cells(_sum(found), price, 3)]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *rest in lines:
        cells = [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)]
        typer.echo("  ".join([f"{first:<{widths[0]}}", *cells]))


def _totals(
    data: Path,
    store: str | None,
    by: Literal["key", "day", "model"],
    since: date | None,
    until: date | None,
    key: str | None,
) -> "list[Total]":
    from overpaint.server.store.database import Database, url_of
    from overpaint.server.store.usage import Ledger

    if store is None and not (data / "jobs.db").exists():
        raise StoreError(f"there is no job store in {data}; give a server's folder with --data.")
    database = Database(url_of(data, store))
    try:
        ledger = Ledger(database)
        digest = None if key is None else ledger.digest(key)
        return ledger.totals(by, since=since, until=until, key=digest)
    finally:
        database.close()


def _cells(one: "Total", price: Decimal | None, digits: int) -> list[str]:
    """What there is to say of a total, with so many digits of its megapixel-steps."""
    counts = [str(one.jobs), str(one.pictures)]
    counts += [f"{one.megapixel_steps:.{digits}f}", f"{one.device_seconds:.3f}"]
    return counts if price is None else [*counts, f"{one.pictures * price:f}"]


def _sum(found: "Sequence[Total]") -> "Total":
    from overpaint.server.store.usage import Total

    return Total(
        "total",
        sum(one.jobs for one in found),
        sum(one.pictures for one in found),
        sum(one.megapixel_steps for one in found),
        sum(one.device_seconds for one in found),
    )


def _day(moment: datetime | None) -> date | None:
    return moment.date() if moment else None
