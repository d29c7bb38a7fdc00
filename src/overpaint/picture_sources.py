"""Read pictures from what Python programs have: paths, URLs, files, Pillow images and arrays.

The constructors of `Request` and `Control` read them. `model_validate` does not, so a text that
comes from elsewhere opens no file and no URL.
"""

import base64
import os
import sys
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from overpaint.errors import PictureError, quote_value
from overpaint.network.urls import is_url
from overpaint.picture import Picture

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_FILE_BYTES = 2**30
"""Bytes of a picture file, at most, by default."""

PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}
TIFF_MODES = {"CMYK", "F", "I", "I;16B", "LAB", "PA", "RGBX"}
"""Pillow's modes that a PNG cannot hold, and a TIFF can. Pillow below 13 reads small YCbCr TIFFs as
truncated, so those become RGB, as at every decoding."""

MODE_BY_CHANNELS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}

FLOAT_TOLERANCE = 1e-3
"""How far floating-point samples may lie outside 0..1, because of rounding errors."""


class BinaryFile(Protocol):
    """A file object that is open for reading bytes."""

    def read(self, size: int, /) -> bytes:
        """Read up to a number of bytes."""
        ...


class ArrayLike(Protocol):
    """A NumPy array, a tensor, or anything that converts to a NumPy array."""

    def __array__(self) -> Any:
        """Return the values as a NumPy array."""
        ...


class ArrayInterface(Protocol):
    """A Pillow image, or another array of Python's array interface."""

    @property
    def __array_interface__(self) -> Any:
        """The layout and the values."""
        ...


EncodedSource = str | os.PathLike[str] | bytes | bytearray | memoryview
"""A path, a URL, or the content of a file."""

PictureSource = EncodedSource | Picture | ArrayInterface | ArrayLike | BinaryFile
"""The sources that `read_source` reads."""


def read_source(
    source: object, name: str = "the picture", max_file_bytes: int = MAX_FILE_BYTES
) -> Picture:
    """Return a source as an encoded picture, which is not decoded yet.

    Args:
        source: a path; an http or https URL (see `network.download`); the bytes of an encoded
            file; a file object, which is read from its start; a Pillow image; a `Picture`, which is
            returned as it is; or an array. NumPy arrays are [height, width], or [height, width,
            channels] with 1 to 4 channels (gray, gray and alpha, RGB, RGBA); tensors are [channels,
            height, width]. Integers are 0 to 255 (uint16: 0 to 65535), floating-point samples 0
            to 1.
        name: what error messages call the picture.
        max_file_bytes: bytes of a file, at most.

    Raises:
        PictureError: the source cannot be read, is of another kind, or has other values or axes.
    """
    match source:
        case Picture():
            return source
        case bytes() | bytearray() | memoryview():
            return Picture(data=bytes(source))
        case str() if source.startswith("data:"):
            return Picture(data=_decode_data_url(source, name))
        case str() if not source:
            raise PictureError(f"{name} is an empty text; give a path, or leave it out.")
        case str() if is_url(source):
            from overpaint.network.download import download  # imports httpx2

            return Picture(data=download(source))
        case str() | os.PathLike():
            return Picture(data=read_file(Path(source), max_file_bytes))
        case _:
            pass
    if _is_instance(source, "PIL.Image", "Image"):
        return Picture(data=_encode(source))
    if _is_instance(source, "torch", "Tensor"):
        values = _from_tensor(source, name)
        return Picture(data=_encode(_from_array(values, name, channels_first=True)))
    if hasattr(source, "__array__") or hasattr(source, "__array_interface__"):
        return Picture(data=_encode(_from_array(source, name, channels_first=False)))
    if callable(getattr(source, "read", None)):
        return Picture(data=_read_object(source, name, max_file_bytes))
    raise PictureError(
        f"{name} is {quote_value(source)}, which is not a picture. Give a path, a URL, the bytes "
        "of a file, a file object, a Pillow image, or an array."
    )


def read_file(path: Path, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Read a file.

    Raises:
        PictureError: the file is missing, a folder, unreadable or too large.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise PictureError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise PictureError(f"{path} is a folder; give a picture file.") from None
    except (OSError, ValueError) as error:
        raise PictureError(f"{path} cannot be read: {error}.") from error
    if len(data) > max_bytes:
        raise PictureError(f"{path} is larger than {max_bytes:,} bytes; give a smaller file.")
    return data


def _is_instance(source: object, module: str, name: str) -> bool:
    """Return whether a value has a class of a module, which is not imported for that."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(source, getattr(loaded, name))


def _decode_data_url(text: str, name: str) -> bytes:
    """Return the content of a data: URL in base64 (RFC 2397)."""
    head, comma, data = text.partition(",")
    try:
        if comma and head.endswith(";base64"):
            return base64.b64decode(data, validate=True)
    except ValueError:
        pass
    raise PictureError(f"{name} is a data: URL ({quote_value(text)}), but not in base64.")


def _read_object(file: Any, name: str, max_bytes: int) -> bytes:
    # Like Pillow: a program that has just written a BytesIO left it at its end.
    try:
        if getattr(file, "seekable", bool)():
            file.seek(0)
        data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        raise PictureError(f"{name} cannot be read: {error}.") from error
    if not isinstance(data, bytes):
        raise PictureError(f"{name} is a file of text; open it with mode 'rb'.")
    if len(data) > max_bytes:
        raise PictureError(f"{name} is larger than {max_bytes:,} bytes; give a smaller file.")
    return data


def _encode(image: Any) -> bytes:
    """Encode a Pillow image without loss, with its orientation and color profile."""
    options: dict[str, Any] = {
        "exif": image.getexif(),
        "icc_profile": image.info.get("icc_profile"),
    }
    if image.mode == "I" and max(image.getextrema()) <= 255:  # as in arrays of whole numbers
        image = image.convert("L")
    if image.mode.startswith("I;16") and image.mode not in PNG_MODES | TIFF_MODES:
        image = image.convert("I")  # Pillow would cut larger samples for RGB
    if image.mode not in PNG_MODES | TIFF_MODES:
        image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, "RGB"))
    kind = "TIFF" if image.mode in TIFF_MODES else "PNG"
    buffer = BytesIO()
    image.save(buffer, kind, **options | ({"compress_level": 1} if kind == "PNG" else {}))
    return buffer.getvalue()


# Arrays


def _from_tensor(tensor: Any, name: str) -> Any:
    try:
        values = tensor.detach().cpu()
        return values.float().numpy() if values.is_floating_point() else values.numpy()
    except (TypeError, NotImplementedError, RuntimeError) as error:
        raise PictureError(
            f"{name} is a tensor without a NumPy array ({error}); give a dense one with values."
        ) from error


def _from_array(source: object, name: str, *, channels_first: bool) -> "Image":
    """Make a Pillow image from an array.

    Args:
        source: [h, w] or with channels; a first axis of one picture is dropped.
        name: what error messages call the picture.
        channels_first: read [channels, h, w] where both orders are possible.
    """
    import numpy as np
    from PIL import Image

    values: Any = np.asarray(source)
    shape = values.shape
    if values.ndim == 4 and shape[0] == 1:
        values = values[0]
    if values.ndim == 3:
        first, last = values.shape[0] in MODE_BY_CHANNELS, values.shape[2] in MODE_BY_CHANNELS
        if first and (channels_first or not last):
            values = values.transpose(1, 2, 0)
    channels = values.shape[-1] if values.ndim == 3 else 1
    if values.ndim not in (2, 3) or channels not in MODE_BY_CHANNELS or 0 in values.shape:
        order = "[channels, height, width]" if channels_first else "[height, width, channels]"
        raise PictureError(
            f"{name} has the shape {list(shape)}; give one picture as {order} with 1 to 4 "
            "channels, or as [height, width]."
        )
    samples = np.ascontiguousarray(_to_8_bits(values, name)).reshape(*values.shape[:2], -1)
    return Image.fromarray(samples[:, :, 0] if channels == 1 else samples)


def _to_8_bits(values: Any, name: str) -> Any:
    import numpy as np

    kind = values.dtype.kind
    if values.dtype == np.uint8:
        return values
    if kind == "b":
        return values.astype(np.uint8) * 255
    if kind not in "uif":
        raise PictureError(
            f"{name} has values of type {values.dtype}; give uint8, or floating-point numbers from "
            "0 to 1."
        )
    low, high = float(values.min()), float(values.max())
    top, slack = (1, FLOAT_TOLERANCE) if kind == "f" else (255, 0)
    if values.dtype == np.uint16:
        top = 65535
    if not (-slack <= low and high <= top + slack):  # also false for NaN
        raise PictureError(
            f"{name} has values of type {values.dtype} from {low:g} to {high:g}; give 0 to {top}, "
            "or uint8 from 0 to 255."
        )
    return np.rint(values.clip(0, top) * (255 / top)).astype(np.uint8)
