"""`overpaint usage`: the usage of API keys, for billing."""

import csv
import sys
from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from overpaint.cli.terminal import echo
from overpaint.errors import RequestError, StoreError
from overpaint.server.settings import DATA_FOLDER

if TYPE_CHECKING:
    from overpaint.server.store.usage import UsageTotal

COUNTS = ("jobs", "pictures", "megapixel_steps", "device_seconds")
NO_KEY = "(no key)"


def _parse_price(text: str) -> Decimal:
    try:
        price = Decimal(text)
    except InvalidOperation:
        price = Decimal("nan")
    if not price.is_finite() or price < 0:
        raise typer.BadParameter(f"{text!r} is not a price. Write it like 0.02.")
    return price


def usage(
    data: Annotated[Path, typer.Option(help="Data folder of the server.")] = DATA_FOLDER,
    store: Annotated[
        str | None,
        typer.Option(help="URL of the job store, if it is on Postgres.", show_default=False),
    ] = None,
    by: Annotated[
        Literal["key", "day", "model"], typer.Option(help="Group the usage by key, day or model.")
    ] = "key",
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="First day, in UTC.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Last day, in UTC.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Count only the key with this name.", show_default=False)
    ] = None,
    price: Annotated[
        Decimal | None,
        typer.Option(parser=_parse_price, metavar="AMOUNT", help="Price of a picture."),
    ] = None,
    currency: Annotated[
        str | None, typer.Option(help="Currency of the price, such as EUR.", show_default=False)
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV without a total.")] = False,
) -> None:
    """Report usage: jobs, pictures, megapixel-steps and seconds of device time."""
    if since and until and until < since:
        raise RequestError(
            "until", f"{until:%Y-%m-%d} is before --since {since:%Y-%m-%d}. Give a later day."
        )
    if currency and price is None:
        raise RequestError("price", f"It is missing. Give the price of a picture in {currency}.")
    found = _read_totals(data, store, by, _to_date(since), _to_date(until), key)
    if as_csv:
        heading = [by, *COUNTS, *(["amount"] * (price is not None))]
        rows = [[one.name, *_format_cells(one, price, 6)] for one in found]
        if currency:
            rows = [[*row, currency] for row in rows]
            heading.append("currency")
        csv.writer(sys.stdout, lineterminator="\n").writerows([heading, *rows])
        return
    priced = [] if price is None else [currency or "amount"]
    lines = [[by, *(name.replace("_", "-") for name in COUNTS), *priced]]
    lines += [[one.name or NO_KEY, *_format_cells(one, price, 3)] for one in found]
    lines += [["total", *_format_cells(_sum(found), price, 3)]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *rest in lines:
        cells = [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)]
        echo("  ".join([f"{first:<{widths[0]}}", *cells]))


def _read_totals(
    data: Path,
    store: str | None,
    by: Literal["key", "day", "model"],
    since: date | None,
    until: date | None,
    key: str | None,
) -> "list[UsageTotal]":
    from overpaint.server.store.database import Database, get_store_url
    from overpaint.server.store.usage import UsageReader

    if store is None and not (data / "jobs.db").exists():
        raise StoreError(
            f"There is no job store in {data}. Give the data folder of a server with --data."
        )
    database = Database(get_store_url(data, store))
    try:
        ledger = UsageReader(database)
        digest = None if key is None else ledger.find_digest(key)
        return ledger.sum_usage(by, since=since, until=until, key=digest)
    finally:
        database.close()


def _format_cells(one: "UsageTotal", price: Decimal | None, digits: int) -> list[str]:
    """Return the cells of a total; `digits` are those of the megapixel-steps."""
    counts = [str(one.jobs), str(one.pictures)]
    counts += [f"{one.megapixel_steps:.{digits}f}", f"{one.device_seconds:.3f}"]
    return counts if price is None else [*counts, f"{one.pictures * price:f}"]


def _sum(found: "Sequence[UsageTotal]") -> "UsageTotal":
    from overpaint.server.store.usage import UsageTotal

    return UsageTotal(
        "total",
        sum(one.jobs for one in found),
        sum(one.pictures for one in found),
        sum(one.megapixel_steps for one in found),
        sum(one.device_seconds for one in found),
    )


def _to_date(moment: datetime | None) -> date | None:
    return moment.date() if moment else None
