"""What a picture says about its making: written into every output, read back from any.

| format | our record | A1111's `parameters` text |
|---|---|---|
| PNG | text chunk `overpaint`, JSON | text chunk `parameters` |
| JPEG, WebP | EXIF ImageDescription, JSON `{"overpaint": …}` | EXIF UserComment |

The JSON is plain ASCII with escapes, so that no program's guess at an encoding can harm it. A JPEG
holds 64 KB of EXIF; longer settings are refused before any work is done.
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
from overpaint.provenance.foreign import Found, a1111, comfyui, invokeai
from overpaint.registry import SAMPLERS, SCHEDULES, resolve_sampler
from overpaint.request import Request
from overpaint.request_fields import resolve_field_aliases

LARGEST_JPEG_EXIF = 65_533
_OF_CONTROLS = ("image", "hint", "mask")
_PICTURES: Any = {"image": True, "mask": True, "controls": {"__all__": set(_OF_CONTROLS)}}
"""Left out of a record, which has their hashes."""
_LIBRARIES = ("torch", "diffusers", "transformers")
_USER_COMMENT = b"UNICODE\0"


class _Named(Protocol):
    @property
    def name(self) -> str: ...


class Checkpoint(_Named, Protocol):
    """What a record says of a model; `models.model.Model` is one."""

    @property
    def sha256(self) -> str:
        """Of the weights."""
        ...

    @property
    def family(self) -> _Named:
        """Its row in the family table."""
        ...

    @property
    def device(self) -> object:
        """Where it computes; its text is recorded."""
        ...

    @property
    def dtype(self) -> object:
        """What it computes in; its text is recorded."""
        ...


class Part(_Named, Protocol):
    """A control net or an embedding, as a record names it."""

    @property
    def sha256(self) -> str:
        """Of the file."""
        ...


class LoraPart(Part, Protocol):
    """A LoRA, as a record names it."""

    @property
    def tensors_sha256(self) -> str:
        """Of the file without its header: what A1111 and Civitai know it by."""
        ...


@dataclass(frozen=True)
class _Longest:
    """A file whose hashes are not known yet."""

    name: str
    sha256: str = "?" * 64
    tensors_sha256: str = "?" * 64


@dataclass(frozen=True)
class Used:
    """The files that a request uses beside its models.

    Attributes:
        loras: its LoRAs.
        nets: of its controls that act.
        embeddings: in its prompts.
    """

    loras: Sequence[LoraPart] = ()
    nets: Sequence[Part] = ()
    embeddings: Sequence[Part] = ()


def record(
    request: Request,
    index: int,
    size: tuple[int, int],
    model: Checkpoint,
    refiner: Checkpoint | None = None,
    used: Used | None = None,
) -> dict[str, Any]:
    """Everything that made picture `index` of a request, ready for JSON.

    Args:
        request: recorded in full but for the bytes of its pictures, of which the hashes are kept.
        index: which picture of the request, from 0.
        size: (width, height) of the result.
        model: that made it.
        refiner: of its second stage.
        used: files beside these, of which names and hashes are kept.
    """
    second = None if refiner is None else _described(refiner)
    return _record(request, index, size, _described(model), second, used or Used())


def _described(model: Checkpoint) -> dict[str, str]:
    return {
        "name": model.name,
        "sha256": model.sha256,
        "family": model.family.name,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def _record(
    request: Request,
    index: int,
    size: tuple[int, int],
    model: dict[str, str],
    refiner: dict[str, str] | None,
    used: Used,
) -> dict[str, Any]:
    return {
        "version": _version("overpaint"),
        "model": model,
        "refiner": refiner,
        "request": request.model_dump(mode="json", exclude=_PICTURES),
        "seed": request.seed + index,
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
        "versions": {library: _version(library) for library in _LIBRARIES},
    }


def parameters(record: Mapping[str, Any]) -> str:
    """The text that A1111 would have written (modules/processing.py, `create_infotext`)."""
    request, model = record["request"], record["model"]
    pairs = {
        "Steps": request["num_inference_steps"],
        "Sampler": SAMPLERS[request["sampler"]].label,
        "Schedule type": SCHEDULES[request["schedule"]].label,
        "CFG scale": _number(request["guidance_scale"]),
        "Seed": record["seed"],
        "Size": "{}x{}".format(*record["size"]),
        "Model hash": model["sha256"][:10],
        "Model": _model_name(Path(model["name"])),
    }
    if request["strength"] is not None:
        pairs["Denoising strength"] = _number(request["strength"])
    if request["clip_skip"]:
        pairs["Clip skip"] = request["clip_skip"] + 2
    loras = {name: own["tensors"] for name, own in record["loras_sha256"].items()}
    for key, files in {"Lora hashes": loras, "TI hashes": record["embeddings_sha256"]}.items():
        if files:
            pairs[key] = ", ".join(f"{name}: {digest[:12]}" for name, digest in files.items())
    pairs["Version"] = f"overpaint {record['version']}"
    lines = [" ".join([request["prompt"], *map(_tag, request["loras"])])]
    if request["negative_prompt"]:
        lines.append(f"Negative prompt: {request['negative_prompt']}")
    lines.append(", ".join(f"{key}: {_quote(str(value))}" for key, value in pairs.items()))
    return "\n".join(lines).strip()


def _tag(lora: Mapping[str, Any]) -> str:
    """A LoRA as it is written in A1111's prompts."""
    scales = [lora["scale"]] if lora["text_scale"] is None else [lora["text_scale"], lora["scale"]]
    return f"<lora:{':'.join([lora['name'], *map(_number, scales)])}>"


def _model_name(path: Path) -> str:
    """A file's or folder's own name, as A1111 has it; a hub id or an alias as it is."""
    if path.suffix == ".safetensors":
        return path.stem
    return path.name if path.is_absolute() else str(path)


def check_output(path: Path, request: Request) -> None:
    """Make sure, before any work is done, that the request's pictures can be written to `path`.

    Raises:
        OutputError: as `images.check_writable`, or the settings are too long for a JPEG.
    """
    output.check_writable(path)
    longest = {"name": "?" * 512, "sha256": "?" * 64, "family": "?" * 64, "dtype": "?" * 64}
    second = longest if request.refiner else None
    texts = (request.prompt, request.prompt_2, request.negative_prompt, request.negative_prompt_2)
    words = sum((text or "").count("<embedding:") for text in texts)
    used = Used(
        [_Longest(lora.name) for lora in request.loras],
        [_Longest(control.net or f"{i:?>64}") for i, control in enumerate(request.controls)],
        [_Longest(f"{i:?>100}") for i in range(words)],
    )
    _options(path, _record(request, 0, (8192, 8192), longest, second, used))


def write(image: Image.Image, path: Path, record: Mapping[str, Any]) -> None:
    """Write a picture with its record, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    output.save_image(image, path, _options(path, record))


def encoded(image: Image.Image, kind: str, record: Mapping[str, Any], **options: Any) -> bytes:
    """The file of a picture with its record.

    Args:
        image: RGB.
        kind: "png", "jpg", "jpeg" or "webp".
        record: as `record` made it.
        options: Pillow's for that format, such as `quality`, in place of ours.

    Raises:
        OutputError: an unknown kind, or settings that are too long for a JPEG.
    """
    path = Path(f"picture.{kind}")
    buffer = BytesIO()
    image.save(buffer, output.get_output_format(path), **(_options(path, record) | options))
    return buffer.getvalue()


def read(path: "str | os.PathLike[str]") -> Found:
    """The settings in a picture of ours, A1111, InvokeAI or ComfyUI.

    Raises:
        PictureError: not a picture, or one without settings that we know.
    """
    name = str(path)
    with codec.open_image(codec.read_picture(path).data, name) as image:
        image.load()  # text chunks may come after the pixels
        texts = texts_of(image)
    for key, reader in {
        "overpaint": _ours,
        "invokeai_metadata": invokeai,
        "parameters": a1111,
        "prompt": comfyui,
    }.items():
        if key in texts and (found := reader(texts[key])):
            return found
    raise PictureError(
        f"{name} carries no settings that can be read "
        "(looked for those of overpaint, A1111, ComfyUI and InvokeAI)."
    )


def to_request(found: Found, image: Picture | None = None, **overrides: Any) -> Request:
    """The request that makes the found picture again.

    Args:
        found: settings, from `read`.
        image: the picture to repaint. The same one as then gives the same result.
        overrides: fields of `Request` that replace what was found.

    Raises:
        RequestError: the settings repaint a picture and there is none, or they are not valid.
    """
    fields = {**found.fields, **overrides}
    if image is None and fields.get("strength") is not None:
        raise RequestError(
            "image", "these settings repaint a picture; give it too, to `overpaint edit`."
        )
    if found.record and found.record.get("mask_sha256") and not overrides.get("mask"):
        raise RequestError("mask", "these settings repaint a part of the picture; give it too.")
    if (
        found.record
        and any(found.record.get("controls_sha256", ()))
        and "controls" not in overrides
    ):
        raise RequestError("controls", "these settings are steered by pictures; give them too.")
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


class _Record(BaseModel):
    """The shape of what `record` makes; fields of later versions are let through."""

    version: str
    model: _Model
    refiner: _Model | None = None
    request: dict[str, Any]
    seed: int
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


def _ours(text: str) -> Found:
    try:
        _Record.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"])) or "JSON"
        raise PictureError(
            f"the picture's overpaint record is damaged: {place}: {problem['msg']}."
        ) from error
    record = json.loads(text)
    fields = {**resolve_field_aliases(record["request"]), "seed": record["seed"], "num_images": 1}
    return Found("overpaint", fields, record["model"]["name"], record=record)


def _options(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Pillow's options that save a picture with its record."""
    kind = output.get_output_format(path)
    if kind == "PNG":
        chunks = PngInfo()
        chunks.add_text("parameters", parameters(record))
        chunks.add_text("overpaint", json.dumps(record))
        return {"pnginfo": chunks}
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = json.dumps({"overpaint": record})
    comment = _USER_COMMENT + parameters(record).encode("utf-16-be")
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    data = exif.tobytes()
    if kind == "JPEG" and len(data) > LARGEST_JPEG_EXIF:
        raise OutputError(
            f"{path}: the prompt and settings take {len(data):,} bytes, and a JPEG holds "
            f"{LARGEST_JPEG_EXIF:,}; write a PNG or WebP."
        )
    if kind == "JPEG":
        return {"exif": data, "quality": 95, "subsampling": 0}
    return {"exif": data, "quality": 95}


def texts_of(image: Image.Image) -> dict[str, str]:
    """Text chunks of a PNG by key; the EXIF texts of others under the keys that a PNG has."""
    texts = {str(key): str(value) for key, value in image.info.items() if isinstance(value, str)}
    exif = image.getexif()
    description = exif.get(ExifTags.Base.ImageDescription)
    if isinstance(description, str) and description.startswith('{"overpaint": '):
        texts.setdefault("overpaint", description.removeprefix('{"overpaint": ')[:-1])
    comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    if isinstance(comment, bytes):
        texts.setdefault("parameters", _user_comment(comment))
    graph = exif.get(ExifTags.Base.Model)  # where ComfyUI's WebP nodes put it
    if isinstance(graph, str) and graph.startswith("prompt:"):
        texts.setdefault("prompt", graph.removeprefix("prompt:"))
    return texts


def _user_comment(data: bytes) -> str:
    """EXIF 2.32, section 4.6.5: eight bytes name the encoding; UTF-16 in either byte order."""
    code, body = data[:8], data[8:]
    if code != _USER_COMMENT:
        return body.decode("utf-8", "replace")
    # The writers disagree about the order. Latin letters have their zero byte first in big-endian.
    big = body[0::2].count(0) >= body[1::2].count(0)
    return body.decode("utf-16-be" if big else "utf-16-le", "replace")


def _quote(value: str) -> str:
    """As A1111 quotes a value that would break the line apart."""
    return json.dumps(value, ensure_ascii=False) if set(value) & set(",:\n") else value


def _number(value: float) -> str:
    return repr(value).removesuffix(".0")
