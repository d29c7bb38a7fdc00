"""What a request names must be here when it is accepted: nobody listens any more when it runs."""

from collections.abc import Collection

from overpaint.errors import ModelNotFoundError, RequestError
from overpaint.models.library.index import NAME_PATTERN, PACKAGED_MODELS, FileKind, LibraryIndex
from overpaint.request import Request


def check_names(request: Request, entries: LibraryIndex, models: Collection[str]) -> None:
    """Refuse what a request names and is not here.

    Args:
        request: to be accepted.
        entries: where the names of LoRAs, nets and embeddings lead.
        models: paths or hub ids that this server was given, and that a request may repeat.

    Raises:
        RequestError: there is nothing by a name, or it is a path or a hub id; names the field.
    """
    for index, lora in enumerate(request.loras):
        _require(f"loras.{index}.name", lora.name, "lora", entries)
    for index, control in enumerate(request.controls):
        if control.net is not None:
            _require(f"controls.{index}.net", control.net, "control", entries)
        if control.estimator is not None:
            _plain(f"controls.{index}.estimator", control.estimator)
    for name, field in request.embeddings.items():
        _require(field, name, "embedding", entries)
    if request.refiner is not None and request.refiner not in {*models, *PACKAGED_MODELS}:
        # What is in the catalogue alone would be downloaded, while everybody waits.
        _plain("refiner", request.refiner)
        _require("refiner", request.refiner, "checkpoint", entries)


def _require(field: str, name: str, kind: FileKind, entries: LibraryIndex) -> None:
    try:
        entries.require(name, kind)
    except ModelNotFoundError as error:
        raise RequestError(field, str(error)) from error


def _plain(field: str, name: str) -> None:
    if not NAME_PATTERN.fullmatch(name):
        raise RequestError(
            field, f"{name!r} is a path or a hub id; requests to a server give a name."
        )
