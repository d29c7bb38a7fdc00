"""`overpaint serve`."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from overpaint.errors import RequestError

if TYPE_CHECKING:
    from overpaint.server.telemetry.traces import TraceExporter

DATA = Path("overpaint-data")
MINIATURE = 128
NATIVE = 1024
DAY = 86400.0
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/*\s]+")


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(help="What may be asked for, the default first; may be given many times."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    data: Annotated[
        Path, typer.Option(help="Folder of the job store, uploads and results.")
    ] = DATA,
    store: Annotated[
        str | None,
        typer.Option(help="Job store on Postgres, postgresql+psycopg://…, which servers share."),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="OVERPAINT_KEY",
            help="Key that clients must give, beside those of `overpaint keys`; may be given many "
            "times. Another address than this machine's own needs one.",
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name that clients may call the server by; may be given many times.",
            show_default="loopback's on loopback, elsewhere any",
        ),
    ] = None,
    allowed_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Pages that may ask, as https://example.org; may be given many times.",
            show_default="the server's own",
        ),
    ] = None,
    allow_private_webhooks: Annotated[
        bool,
        typer.Option(
            "--allow-private-webhooks", help="Post webhooks to addresses that are not public too."
        ),
    ] = False,
    fetch: Annotated[
        Literal["none", "public", "all"],
        typer.Option(
            help="URLs of pictures that are fetched for requests: none, those of public addresses, "
            "or those that lead into the server's own network too."
        ),
    ] = "public",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="bf16, fp16, fp32.")] = "auto",
    home: Annotated[
        Path | None, typer.Option(help="Where added models are; by default ~/.overpaint.")
    ] = None,
    refiner: Annotated[
        str | None,
        typer.Option(help="Model of second stages, for clients that ask for one without a name."),
    ] = None,
    memory: Annotated[
        float, typer.Option(min=0.1, help="Gigabytes of weights that may be in memory at once.")
    ] = float("inf"),
    profile: Annotated[
        Path | None, typer.Option(help="What steps take here, as `overpaint bench` wrote it.")
    ] = None,
    cache: Annotated[
        float,
        typer.Option(min=0, help="Megabytes of encoded prompts, pictures and hints to keep."),
    ] = 512.0,
    queue: Annotated[int, typer.Option(min=1, help="Jobs that may wait.")] = 10_000,
    queue_per_key: Annotated[
        int | None, typer.Option(min=1, help="Jobs of one key that may wait; by default all.")
    ] = None,
    keep: Annotated[
        float, typer.Option(min=0, help="Days that a job and its pictures are kept.")
    ] = 7.0,
    keep_uploads: Annotated[
        float, typer.Option(min=0.01, help="Days that an upload is kept which no job needs.")
    ] = 1.0,
    log: Annotated[
        Literal["text", "json"], typer.Option(help="How to write what happens, to stderr.")
    ] = "text",
    safety_checker: Annotated[
        str | None,
        typer.Option(
            help="What flags pictures, which are then not published: a folder as diffusers writes "
            "StableDiffusionSafetyChecker, or MODULE:FUNCTION; by default nothing.",
        ),
    ] = None,
    safety_optional: Annotated[
        bool,
        typer.Option("--safety-optional", help="Clients may have their pictures not checked."),
    ] = False,
    otel: Annotated[
        bool,
        typer.Option("--otel", help="Post OpenTelemetry traces to where the OTEL_… variables say."),
    ] = False,
    watermark: Annotated[
        bool, typer.Option("--watermark", help="Pictures get an invisible watermark, SDXL's own.")
    ] = False,
    c2pa_certificate: Annotated[
        Path | None,
        typer.Option(help="Chain (PEM) that pictures are signed with by C2PA; needs the key too."),
    ] = None,
    c2pa_key: Annotated[
        Path | None, typer.Option(help="Private key (PEM) of the certificate.")
    ] = None,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds for jobs under way when the server is ended.")
    ] = 30.0,
) -> None:
    """Turn this machine into a service: jobs over HTTP, none of them ever lost."""
    keys = [given.strip() for given in key or [] if given.strip()]
    for origin in allowed_origin or ():
        if not ORIGIN.fullmatch(origin):
            raise RequestError(
                "allowed_origin", f"{origin!r} is not one page's, such as https://example.org."
            )

    from overpaint.engine.postprocess import Finishing
    from overpaint.engine.profile import Profile
    from overpaint.engine.worker import paints
    from overpaint.server.app import run
    from overpaint.server.jobs.service import Settings, prepare_store
    from overpaint.server.outbound.addresses import is_loopback
    from overpaint.server.store.api_keys import opened
    from overpaint.server.store.database import url_of
    from overpaint.server.store.jobs import Limits
    from overpaint.server.telemetry.logs import configure_logging

    finishing = Finishing(safety_checker, device, watermark, c2pa_certificate, c2pa_key)
    finishing.check()
    names = tuple(model or ["miniature"])
    times = Profile.read(profile) if profile else None
    if times and times.model not in names:
        raise RequestError(
            "profile",
            f"{profile} was measured with {times.model!r}, which is not among the models; measure "
            "one that is with `overpaint bench`.",
        )
    settings = Settings(
        data,
        names,
        paints,
        (names, device, dtype, home, memory * 2**30, times, cache * 2**20),
        store,
        Limits(queued=queue, queued_per_key=queue_per_key or queue),
        profile=times or Profile(),
        native=MINIATURE if names[0].startswith("miniature") else NATIVE,
        keep_results=keep * DAY,
        keep_files=keep_uploads * DAY,
        grace=grace,
        home=home,
        refiner=refiner,
        private_webhooks=allow_private_webhooks,
        fetch=fetch,
        finishing=finishing,
        safety_optional=safety_optional,
    )
    configure_logging(log)
    prepare_store(data, store)
    if not keys and not is_loopback(host):
        with opened(url_of(data, store)) as stored:
            if not stored.good():
                raise RequestError(
                    "host",
                    f"{host} can be reached from elsewhere; give a --key that clients must have, "
                    "or make one with `overpaint keys create`.",
                )
    print(f"http://{host}:{port}/docs  models: {', '.join(names)}", file=sys.stderr)
    run(
        settings,
        keys,
        host=host,
        port=port,
        hosts=allowed_host or (),
        origins=allowed_origin or (),
        traces=_traces() if otel else None,
    )


def _traces() -> "TraceExporter":
    """Where spans go.

    Raises:
        RequestError: what posts them is not installed.
    """
    try:
        from overpaint.server.telemetry.traces import make_otlp_exporter
    except ModuleNotFoundError as error:
        raise RequestError(
            "otel", f"{error.name} is not installed: pip install 'overpaint[otel]'."
        ) from error
    return make_otlp_exporter()
