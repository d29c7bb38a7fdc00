"""Check the names in a request when the server accepts it, because a client waits only then."""

from collections.abc import Collection

from overpaint.errors import ModelNotFoundError, RequestError
from overpaint.models.library.catalog import TINY_DECODERS
from overpaint.models.library.entry import NAME_PATTERN, FileKind
from overpaint.models.library.index import PACKAGED_MODELS, LibraryIndex
from overpaint.request import Request


def check_names(request: Request, entries: LibraryIndex, models: Collection[str]) -> None:
    """Reject a request that names a file that the server does not have.

    Args:
        request: to be accepted.
        entries: added LoRAs, control nets, embeddings, VAEs and checkpoints.
        models: paths or hub ids that the operator has configured, which a request may repeat.

    Raises:
        RequestError: a name is unknown, or it is a path or a hub id. The error has the field.
    """
    for index, lora in enumerate(request.loras):
        _require_entry(f"loras.{index}.name", lora.name, "lora", entries)
    for index, control in enumerate(request.controls):
        if control.net is not None:
            _require_entry(f"controls.{index}.net", control.net, "control", entries)
        if control.estimator is not None:
            _reject_path(f"controls.{index}.estimator", control.estimator)
    if request.vae is not None and entries.resolve(request.vae, "checkpoint") is None:
        _require_entry("vae", request.vae, "vae", entries)
    if request.decoder not in (None, "tiny", *TINY_DECODERS):
        _require_entry("decoder", request.decoder, "decoder", entries)
    loras = [lora.name for lora in request.loras]
    for name, field in request.embeddings.items():
        _require_entry(field, name, "embedding", entries, loras)
    if request.refiner is not None and request.refiner not in {*models, *PACKAGED_MODELS}:
        # A model that only the catalog knows would be downloaded, and all jobs would wait for that.
        if entries.resolve(request.refiner, "checkpoint") is None:
            _reject_path("refiner", request.refiner)
        _require_entry("refiner", request.refiner, "checkpoint", entries)


def _require_entry(
    field: str,
    name: str,
    kind: FileKind,
    entries: LibraryIndex,
    loras: Collection[str] = (),
) -> None:
    try:
        entries.require(name, kind, loras)
    except ModelNotFoundError as error:
        raise RequestError(field, str(error)) from error


def _reject_path(field: str, name: str) -> None:
    if not NAME_PATTERN.fullmatch(name):
        raise RequestError(
            field, f"{name!r} is a path or a hub id; requests to a server give a name."
        )
