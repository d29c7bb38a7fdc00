"""Names of file formats that are not supported, for error messages."""

FILE_SIGNATURES: tuple[tuple[str, int, bytes], ...] = (
    ("a TIFF", 0, b"II*\0"),
    ("a TIFF", 0, b"MM\0*"),
    ("a GIF", 0, b"GIF8"),
    ("a BMP", 0, b"BM"),
    ("a PSD", 0, b"8BPS"),
    ("a FITS", 0, b"SIMPLE  ="),
    ("an EPS", 0, b"%!PS"),
    ("an EPS", 0, b"\xc5\xd0\xd3\xc6"),
    ("a PDF", 0, b"%PDF"),
    ("a JPEG 2000", 0, b"\0\0\0\x0cjP  "),
    ("a JPEG XL", 0, b"\0\0\0\x0cJXL "),
    ("a JPEG XL", 0, b"\xff\x0a"),
    ("an OpenEXR", 0, b"v/1\x01"),
    ("an AVIF", 4, b"ftypavi"),
    ("a HEIC", 4, b"ftyphei"),
    ("a HEIC", 4, b"ftyphev"),
    ("a HEIC", 4, b"ftypmif1"),
    ("a HEIC", 4, b"ftypmsf1"),
)
"""Formats that error messages can name: the name, the offset of its signature, the signature."""


def identify_format(data: bytes) -> str | None:
    """Name the format of a file that is not supported, or return None."""
    for kind, at, beginning in FILE_SIGNATURES:
        if data.startswith(beginning, at):
            return kind
    return "an SVG" if b"<svg" in data[:1000].lower() else None
