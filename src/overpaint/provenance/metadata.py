"""Write settings into every output picture, and read them back from Overpaint's and other files.

| Format | Overpaint's record | A1111's `parameters` text |
|---|---|---|
| PNG | text chunk `overpaint`, JSON | text chunk `parameters` |
| JPEG, WebP | EXIF ImageDescription, JSON `{"overpaint": …}` | EXIF UserComment |

The JSON is ASCII with escapes, so that no reader decodes it wrongly. A JPEG holds 64 KB of EXIF;
longer settings are refused before any work is done.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel, ValidationError

from overpaint.errors import OutputError, PictureError, RequestError
from overpaint.imaging import codec, output
from overpaint.picture import Picture
from overpaint.provenance.a1111_text import format_parameters
from overpaint.provenance.importers import READERS
from overpaint.provenance.importers.collector import ImportedSettings
from overpaint.provenance.picture_texts import PictureTexts, extract_texts
from overpaint.registry import resolve_sampler
from overpaint.request import Request
from overpaint.request.fields import resolve_field_aliases

MAX_JPEG_EXIF_BYTES = 65_533
_OF_CONTROLS = ("image", "hint", "mask")
_PICTURES: Any = {"image": True, "mask": True, "controls": {"__all__": set(_OF_CONTROLS)}}
"""Fields that a record leaves out; it holds their hashes instead."""
_LIBRARIES = ("torch", "diffusers", "transformers")
_USER_COMMENT = b"UNICODE\0"


class _Named(Protocol):
    @property
    def name(self) -> str: ...


class Checkpoint(_Named, Protocol):
    """The facts about a model that a record holds; `models.model.Model` has them."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the weights."""
        ...

    @property
    def family(self) -> _Named:
        """The model's row in the family table."""
        ...

    @property
    def parts(self) -> "Mapping[str, AddonFile]":
        """The files of parts that replace those of the checkpoint."""
        ...

    @property
    def device(self) -> object:
        """The device, recorded as text."""
        ...

    @property
    def dtype_name(self) -> str:
        """The number format of the weights."""
        ...


class AddonFile(_Named, Protocol):
    """The facts about a control net or an embedding that a record holds."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the file."""
        ...


class LoraFile(AddonFile, Protocol):
    """The facts about a LoRA that a record holds."""

    @property
    def tensors_sha256(self) -> str:
        """SHA-256 of the file without its header, by which A1111 and Civitai identify it."""
        ...


@dataclass(frozen=True)
class _LongestFile:
    """A file whose hashes are not known yet, at their full length."""

    name: str
    sha256: str = "?" * 64
    tensors_sha256: str = "?" * 64


@dataclass(frozen=True)
class UsedFiles:
    """The files that a request uses besides its models.

    Attributes:
        loras: the LoRAs.
        nets: the control nets that act.
        embeddings: the embeddings that its prompts name.
        decoder: the tiny decoder, if one makes the pictures.
    """

    loras: Sequence[LoraFile] = ()
    nets: Sequence[AddonFile] = ()
    embeddings: Sequence[AddonFile] = ()
    decoder: AddonFile | None = None


def make_record(
    request: Request,
    index: int,
    size: tuple[int, int],
    model: Checkpoint,
    refiner: Checkpoint | None = None,
    used: UsedFiles | None = None,
) -> dict[str, Any]:
    """Make the record of picture `index` of a request, ready for JSON.

    Args:
        request: recorded in full, except that pictures are recorded by their hashes.
        index: number of the picture in the request, from 0.
        size: (width, height) of the result.
        model: the model that made the picture.
        refiner: the model of the second stage.
        used: other files, recorded by their names and hashes.
    """
    second = None if refiner is None else _describe_model(refiner)
    if second and request.refiner:
        second["name"] = request.refiner  # the model is shared with requests of its other names
    return _record(request, index, size, _describe_model(model), second, used or UsedFiles())


def _describe_model(model: Checkpoint) -> dict[str, Any]:
    parts = {part: {"name": own.name, "sha256": own.sha256} for part, own in model.parts.items()}
    return {
        **({"parts": parts} if parts else {}),
        "name": model.name,
        "sha256": model.sha256,
        "family": model.family.name,
        "device": str(model.device),
        "dtype": model.dtype_name,
    }


def _record(
    request: Request,
    index: int,
    size: tuple[int, int],
    model: dict[str, Any],
    refiner: dict[str, Any] | None,
    used: UsedFiles,
) -> dict[str, Any]:
    return {
        "version": _version("overpaint"),
        "model": model,
        "refiner": refiner,
        "request": request.model_dump(mode="json", exclude=_PICTURES),
        "seed": request.picture_seeds[index],
        "subseed": request.picture_subseeds[index] if request.subseed_strength else None,
        "index": index,
        "size": list(size),
        "input_sha256": request.image.sha256 if request.image else None,
        "mask_sha256": request.mask.sha256 if request.mask else None,
        "controls_sha256": [
            {name: p.sha256 for name in _OF_CONTROLS if (p := getattr(control, name))}
            for control in request.controls
        ],
        "loras_sha256": {
            lora.name: {"file": lora.sha256, "tensors": lora.tensors_sha256} for lora in used.loras
        },
        "nets_sha256": {net.name: net.sha256 for net in used.nets},
        "embeddings_sha256": {e.name: e.sha256 for e in used.embeddings},
        **({"decoder_sha256": used.decoder.sha256} if used.decoder else {}),
        "versions": {library: _version(library) for library in _LIBRARIES},
    }


def check_output(path: Path, request: Request) -> None:
    """Check, before any work is done, that the request's pictures can be written to `path`.

    Raises:
        OutputError: the path cannot be written, or the settings are too long for a JPEG.
    """
    output.check_writable(path)
    check_settings_length(path, request)


def check_settings_length(path: Path, request: Request) -> None:
    """Check that the format of `path` can hold the settings of a request's pictures.

    Raises:
        OutputError: the settings are too long for a JPEG.
    """
    longest: dict[str, Any] = {
        "name": "?" * 512,
        "sha256": "?" * 64,
        "family": "?" * 64,
        "dtype": "?" * 64,
    }
    if request.vae:
        longest["parts"] = {"vae": {"name": request.vae, "sha256": "?" * 64}}
    second = longest if request.refiner else None
    words = sum(text.count("<embedding:") for text in request.prompts.values())
    used = UsedFiles(
        [_LongestFile(lora.name) for lora in request.loras],
        [_LongestFile(control.net or f"{i:?>64}") for i, control in enumerate(request.controls)],
        [_LongestFile(f"{i:?>100}") for i in range(words)],
        _LongestFile("") if request.decoder else None,
    )
    _save_options(path, _record(request, 0, (8192, 8192), longest, second, used))


def write_picture(image: Image.Image, path: Path, record: Mapping[str, Any]) -> None:
    """Write a picture with its record, atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    output.save_image(image, path, _save_options(path, record))


def encode_picture(
    image: Image.Image, kind: str, record: Mapping[str, Any], **options: Any
) -> bytes:
    """Encode a picture with its record.

    Args:
        image: an RGB or RGBA picture.
        kind: "png", "jpg", "jpeg" or "webp".
        record: the record, from `make_record`.
        options: Pillow's options for that format, such as `quality`; they replace the defaults.

    Raises:
        OutputError: the kind is unknown, or the settings are too long for a JPEG.
    """
    path = Path(f"picture.{kind}")
    buffer = BytesIO()
    kind = output.get_output_format(path)
    output.encode_image(image, buffer, kind, _save_options(path, record) | options)
    return buffer.getvalue()


def read_settings(path: "str | os.PathLike[str]") -> ImportedSettings:
    """Read the settings in a picture that Overpaint or another program made.

    Raises:
        PictureError: the file is not a picture, or holds no settings in a known format.
    """
    name = str(path)
    with codec.open_image(codec.read_picture(path).data, name, texts=True) as image:
        image.load()  # text chunks may come after the pixels
        texts = PictureTexts(extract_texts(image), image.size)
    if own := texts.by_key.get("overpaint"):
        return _read_own_record(own)
    for read in READERS:
        if found := read(texts):
            return found
    raise PictureError(
        f"{name} carries no settings that can be read (looked for those of Overpaint, A1111, "
        "ComfyUI, Fooocus, InvokeAI, NovelAI and SwarmUI)."
    )


def to_request(found: ImportedSettings, image: Picture | None = None, **overrides: Any) -> Request:
    """Make the request that paints the picture of some settings again.

    Args:
        found: the settings, from `read_settings`.
        image: the picture to repaint. The same picture gives the same result.
        overrides: fields of `Request` that replace the settings.

    Raises:
        RequestError: the settings need a picture and `image` is None, or a value is not valid.
    """
    fields = {**found.fields, **overrides}
    if image is None and fields.get("strength") is not None:
        raise RequestError(
            "image", "These settings repaint a picture; give it too, to `overpaint edit`."
        )
    if found.record and found.record.get("mask_sha256") and not overrides.get("mask"):
        raise RequestError("mask", "These settings repaint a part of the picture; give it too.")
    if (
        found.record
        and any(found.record.get("controls_sha256", ()))
        and "controls" not in overrides
    ):
        raise RequestError("controls", "These settings are steered by pictures; give them too.")
    if "sampler" in overrides and "schedule" not in overrides:
        _, implied = resolve_sampler(overrides["sampler"])
        if implied:
            fields["schedule"] = implied
    return Request.model_validate({**fields, "image": image})


class _Model(BaseModel):
    name: str
    sha256: str
    family: str
    device: str | None = None
    dtype: str | None = None
    parts: dict[str, dict[str, str]] = {}


class _Record(BaseModel):
    """The schema of a record; fields of later versions are ignored."""

    version: str
    model: _Model
    refiner: _Model | None = None
    request: dict[str, Any]
    seed: int
    subseed: int | None = None
    index: int
    size: tuple[int, int]
    input_sha256: str | None
    mask_sha256: str | None = None
    controls_sha256: list[dict[str, str]] = []
    loras_sha256: dict[str, dict[str, str]] = {}
    nets_sha256: dict[str, str] = {}
    embeddings_sha256: dict[str, str] = {}
    versions: dict[str, str]


@cache
def _version(package: str) -> str:
    return version(package)


def _read_own_record(text: str) -> ImportedSettings:
    try:
        _Record.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"])) or "JSON"
        raise PictureError(
            f"The picture's overpaint record is damaged: {place}: {problem['msg']}."
        ) from error
    record = json.loads(text)
    fields = {**resolve_field_aliases(record["request"]), "seed": record["seed"], "num_images": 1}
    if record.get("subseed") is not None:
        fields["subseed"] = record["subseed"]
    return ImportedSettings("overpaint", fields, record["model"]["name"], record=record)


def _save_options(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return Pillow's options that save a picture with its record."""
    kind = output.get_output_format(path)
    if kind == "PNG":
        chunks = PngInfo()
        chunks.add_text("parameters", format_parameters(record))
        chunks.add_text("overpaint", json.dumps(record))
        return {"pnginfo": chunks}
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = json.dumps({"overpaint": record})
    comment = _USER_COMMENT + format_parameters(record).encode("utf-16-be")
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    data = exif.tobytes()
    if kind == "JPEG" and len(data) > MAX_JPEG_EXIF_BYTES:
        raise OutputError(
            f"{path}: the prompt and settings take {len(data):,} bytes, and a JPEG holds "
            f"{MAX_JPEG_EXIF_BYTES:,}; write a PNG or WebP."
        )
    if kind == "JPEG":
        return {"exif": data, "quality": 95, "subsampling": 0}
    return {"exif": data, "quality": 95, "exact": True}  # exact: also under transparency
