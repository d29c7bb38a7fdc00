"""Images and masks in the fields of clients."""

from PIL import Image, ImageOps

from overpaint.errors import RequestError
from overpaint.imaging import codec
from overpaint.picture import Picture
from overpaint.server.api.fields import decode_base64, decode_data_uri, encode_mask

MASK_ROUNDING_LEVEL = 128
"""Gray level, 0 to 255, up to which a rounded mask becomes black."""


def decode_image(field: str, text: str) -> bytes:
    """Return the bytes of an image that is base64 or a data: URI.

    Raises:
        RequestError: the text is neither.
    """
    text = text.strip()
    if text.startswith("data:"):
        return decode_data_uri(field, text)
    if "," in text or "://" in text:
        raise RequestError(field, "The value is neither base64 nor a data: URI.")
    return decode_base64(field, text)


def read_gray(data: bytes, field: str) -> Image.Image:
    """Return the gray levels of a mask in which white is repainted.

    Args:
        data: the file of the mask. If it has transparency, opaque pixels become white.
        field: the field that contains the mask, for error messages.

    Raises:
        PictureError: see `codec.receive_picture`.
    """
    with codec.open_upload(data, field) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return codec.extract_alpha(image) or image.convert("L")


def read_mask(data: bytes, field: str, *, rounded: bool) -> Picture:
    """Return a grayscale mask in which white is repainted.

    Args:
        data: see `read_gray`.
        field: see `read_gray`.
        rounded: whether gray pixels become black or white.

    Raises:
        PictureError: see `codec.receive_picture`.
    """
    gray = read_gray(data, field)
    if rounded:
        gray = gray.point([255 * (level > MASK_ROUNDING_LEVEL) for level in range(256)])
    return encode_mask(gray)
