"""Read texts and color profiles from the chunks of a PNG, of any size up to a limit.

Pillow refuses a whole PNG if one text or its profile has more than 1 MiB. So the decoder gets a PNG
without them, and this module reads them.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Any

from overpaint.errors import PictureError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
ORIENTATION_TEXTS = ("XML:com.adobe.xmp", "Raw profile type exif")
"""Texts in which Pillow looks for the orientation of a picture."""
MAX_TEXT_BYTES = 8 * 2**20
"""Bytes of all texts of a PNG together, at most, uncompressed."""
MAX_PROFILE_BYTES = 16 * 2**20
"""Bytes of a color profile, at most; a larger one counts as unreadable."""
MAX_ORIENTATION_BYTES = 2**20
"""Bytes of all texts that hold an orientation together, uncompressed, of which more are ignored."""
INFLATE_STEP_BYTES = 256
"""Compressed bytes per step, which is the resolution of the work that damaged data has cost."""
MAX_INFLATION = 1032
"""Uncompressed bytes per compressed byte of zlib, at most."""


def iterate_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type of each chunk, and the start and end of its data (PNG, 5.3), up to IEND.

    A chunk that the end of the file cuts off is not yielded.
    """
    at, kind = len(SIGNATURE), b""
    while at + 12 <= len(data) and kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            return
        yield kind, at + 8, at + 8 + length
        at += 12 + length


def find_chunk(data: bytes, wanted: bytes) -> bytes:
    """Return the data of a PNG's first chunk of a type, or b""."""
    found = (data[start:end] for kind, start, end in iterate_chunks(data) if kind == wanted)
    return next(found, b"")


def split_metadata(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """Return a PNG without its texts and profile, and the values for Pillow's `Image.info`.

    The values are the first profile, the texts that hold an orientation, and a transparent level in
    the unit of the decoded samples.
    """
    info: dict[str, Any] = {}
    kept: list[bytes] = []
    since, left, profiles = 0, MAX_ORIENTATION_BYTES, 0
    for kind, start, end in iterate_chunks(data):
        if kind == b"iCCP":
            profiles += 1
            if profiles == 1 and (profile := _read_profile(data[start:end])):
                info["icc_profile"] = profile
        elif kind in TEXT_CHUNKS:
            key = data[start : start + 80].partition(b"\0")[0].decode("latin-1")
            if key in ORIENTATION_TEXTS and left > 0:
                _, text, cost = _read_text(kind, data[start:end], left)
                left -= cost
                if text is not None:
                    info[key] = text
        else:
            if kind == b"tRNS":
                info |= _scale_transparency(data, data[start:end])
            continue
        kept.append(data[since : start - 8])
        since = end + 4
    return (b"".join([*kept, data[since:]]) if kept else data), info


def read_texts(data: bytes, name: str) -> dict[str, str]:
    """Return the texts of a PNG by keyword; of equal keywords the last one counts.

    Args:
        data: the file.
        name: what error messages call the picture.

    Raises:
        PictureError: the texts are too long together.
    """
    texts: dict[str, str] = {}
    left = MAX_TEXT_BYTES
    for kind, start, end in iterate_chunks(data):
        if kind not in TEXT_CHUNKS:
            continue
        key, text, cost = _read_text(kind, data[start:end], left)
        left -= cost + len(key)
        if left < 0:
            raise PictureError(
                f"{name} carries more than {MAX_TEXT_BYTES // 2**20} MiB of text, "
                "which are not read; remove it from the file."
            )
        if text is not None:
            texts[key] = text
    return texts


def _read_text(kind: bytes, body: bytes, limit: int) -> tuple[str, str | None, int]:
    """Return the keyword and the text of a chunk (PNG, 11.3.4), and the bytes that it has cost.

    A compressed text is read up to `limit` + 1 bytes. A malformed text is None.
    """
    name, _, rest = body.partition(b"\0")
    key = name.decode("latin-1")
    compressed = kind == b"zTXt"
    if kind == b"iTXt":
        flags = rest[:2]
        _, _, rest = rest[2:].partition(b"\0")  # the language
        _, _, rest = rest.partition(b"\0")  # the keyword in that language
        compressed = flags[:1] == b"\1"
    elif compressed:
        rest = rest[1:]
    if compressed:
        inflated, cost = _inflate(rest, limit)
        if inflated is None:
            return key, None, cost
        rest = inflated
    if kind == b"iTXt":
        return key, rest.decode("utf-8", "replace"), len(rest)
    return key, _decode_latin_1(rest), len(rest)


def _decode_latin_1(data: bytes) -> str:
    """Decode the text of a chunk for Latin-1, which many programs fill with UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _read_profile(body: bytes) -> bytes | None:
    found, _ = _inflate(body.partition(b"\0")[2][1:], MAX_PROFILE_BYTES)
    return found if found and len(found) <= MAX_PROFILE_BYTES else None


def _inflate(data: bytes, limit: int) -> tuple[bytes | None, int]:
    """Return uncompressed data, up to `limit` + 1 bytes, and the bytes that were uncompressed.

    Damaged data is None, and costs what its steps may have uncompressed before the damage.
    """
    stream, limit = zlib.decompressobj(), max(limit, 0)
    parts: list[bytes] = []
    size = 0
    for at in range(0, len(data), INFLATE_STEP_BYTES):
        step = data[at : at + INFLATE_STEP_BYTES]
        try:
            parts.append(stream.decompress(step, limit + 1 - size))
        except zlib.error:
            return None, min(limit, size + MAX_INFLATION * len(step))
        size += len(parts[-1])
        if size > limit or stream.eof:
            break
    return b"".join(parts), size


def _scale_transparency(data: bytes, body: bytes) -> dict[str, Any]:
    """Return the transparent level where Pillow scales samples but not that level."""
    depth, color = data[24], data[25]
    if color == 0 and depth in (2, 4) and len(body) >= 2:
        return {"transparency": struct.unpack_from(">H", body)[0] * 255 // (2**depth - 1)}
    if color == 2 and depth == 16 and len(body) >= 6:
        return {"transparency": tuple(level >> 8 for level in struct.unpack_from(">3H", body))}
    return {}
