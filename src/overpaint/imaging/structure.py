"""Bounds on the parts of a picture file, which are counted before a decoder reads them.

Decoders spend time on each part, however small the part is: 1.5 million empty PNG chunks take
Pillow a minute, and 900 EXIF segments of a JPEG, which it joins one by one, 19 s.
"""

from itertools import islice

from overpaint.errors import PictureError
from overpaint.imaging.png_chunks import SIGNATURE as PNG_SIGNATURE
from overpaint.imaging.png_chunks import iterate_chunks

JPEG_SIGNATURE = b"\xff\xd8"
AVIF_SIGNATURE = b"ftypavi"
"""Bytes 4 to 10 of an AVIF."""

MAX_SMALL_PNG_CHUNKS = 1000
"""Chunks of a PNG beside those that `PNG_BYTES_PER_CHUNK` allows."""

PNG_BYTES_PER_CHUNK = 2048
"""Bytes of a PNG for each of its chunks, at least. Encoders write 8 KiB and more per chunk."""

MAX_JPEG_SEGMENTS = 1000
"""Segments of a JPEG before its first scan: a color profile has at most 255."""

MAX_EXIF_SEGMENTS = 16
"""EXIF segments of a JPEG; one is usual."""

MAX_AVIF_BOXES = 1000
"""Boxes of an AVIF at the top level; three are usual."""

MARKERS_WITHOUT_LENGTH = (0x00, 0x01, *range(0xD0, 0xD9))
START_OF_SCAN, END_OF_IMAGE, APP1 = 0xDA, 0xD9, 0xE1


def check_structure(data: bytes, name: str) -> None:
    """Check the number of parts of a PNG or JPEG, and that an AVIF is complete.

    Args:
        data: the file, which may have any format.
        name: what error messages call the picture.

    Raises:
        PictureError: there are too many parts, or one is missing.
    """
    if data.startswith(PNG_SIGNATURE):
        _check_png_chunks(data, name)
    elif data.startswith(JPEG_SIGNATURE):
        _check_jpeg_segments(data, name)
    elif data[4:11] == AVIF_SIGNATURE:
        _check_avif_boxes(data, name)


def _check_png_chunks(data: bytes, name: str) -> None:
    """Count the chunks (PNG, 5.3) up to the limit."""
    most = MAX_SMALL_PNG_CHUNKS + len(data) // PNG_BYTES_PER_CHUNK
    if sum(1 for _ in islice(iterate_chunks(data), most + 1)) > most:
        raise PictureError(f"{name} has more than {most:,} PNG chunks; save the picture again.")


def _check_jpeg_segments(data: bytes, name: str) -> None:
    """Count the segments before the first scan (ITU-T T.81, B.1.1) up to the limits."""
    at, count, exif = len(JPEG_SIGNATURE), 0, 0
    while at + 4 <= len(data):
        kind = data[at + 1]
        if data[at] != 0xFF or kind in (START_OF_SCAN, END_OF_IMAGE):
            return  # where a scan begins, or where decoders find no marker
        count += 1  # of fill bytes too, which decoders read one by one
        exif += kind == APP1 and data[at + 4 : at + 8] == b"Exif"
        if count > MAX_JPEG_SEGMENTS or exif > MAX_EXIF_SEGMENTS:
            raise PictureError(
                f"{name} has more than {MAX_JPEG_SEGMENTS:,} JPEG segments, or more than "
                f"{MAX_EXIF_SEGMENTS} EXIF segments; save the picture again."
            )
        if kind == 0xFF:
            at += 1
        elif kind in MARKERS_WITHOUT_LENGTH:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4])


def _check_avif_boxes(data: bytes, name: str) -> None:
    """Check that the index (meta) and the pixels (mdat) are whole (ISO/IEC 14496-12, 4.2)."""
    at, missing = 0, {b"meta", b"mdat"}
    for _ in range(MAX_AVIF_BOXES):
        size, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        if size == 1:  # A 64-bit size follows the type.
            size = int.from_bytes(data[at + 8 : at + 16])
        elif size == 0:  # The box ends with the file.
            size = len(data) - at
        at += size
        if size < 8 or at > len(data):
            raise PictureError(f"{name} is damaged or truncated: a part of the AVIF is missing.")
        missing.discard(kind)
        if not missing:
            return
    raise PictureError(f"{name} has more than {MAX_AVIF_BOXES:,} boxes; save the picture again.")
