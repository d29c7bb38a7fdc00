"""C2PA: a signed manifest inside a picture, which says that a model made it, and who says so.

The certificate and key are the operator's. Signing needs the package `c2pa-python`:
`pip install overpaint[c2pa]`. Nothing is fetched: no timestamp of an authority, no manifest that a
client's picture links to. Thumbnails are left out, so that what was repainted is in no file.
"""

from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from overpaint.errors import OutputError, RequestError
from overpaint.imaging import codec

if TYPE_CHECKING:
    from overpaint.picture import Picture

SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/"
"""IPTC's words for where a picture is from."""

CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
"""Algorithms of C2PA by the curve of the key; RSA's is ps256, and ed25519 is its own."""

MIME = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}

SETTINGS: dict[str, Any] = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
}
PARENT = "parent"


class Credentials:
    """An operator's certificate and key."""

    def __init__(self, certificate: Path, key: Path):
        """Read both, and see that they can sign.

        Args:
            certificate: the chain, PEM, the signer's own first.
            key: its private key, PEM, without a password.

        Raises:
            RequestError: one is missing, damaged or does not fit the other, or there is no
                c2pa-python.
        """
        try:
            import c2pa
        except ImportError as error:
            raise RequestError(
                "c2pa_certificate", f"needs `pip install overpaint[c2pa]`: {error}."
            ) from error
        self._library: Any = c2pa
        chain = _read("c2pa_certificate", certificate)
        private = _read("c2pa_key", key)
        algorithm = _algorithm(key, private)
        try:
            info = c2pa.C2paSignerInfo(algorithm.encode(), chain, private, None)
            self._signer = c2pa.Signer.from_info(info)
            self._context = c2pa.Context.from_dict(SETTINGS)
            self.signed(_smallest(), "png", None)
        except (c2pa.C2paError, OutputError) as error:
            raise RequestError(
                "c2pa_certificate", f"{certificate} and {key} cannot sign: {error}"
            ) from error

    def signed(self, data: bytes, kind: str, parent: "Picture | None") -> bytes:
        """A picture's file with its manifest.

        Args:
            data: the file.
            kind: "png", "jpg" or "webp".
            parent: the picture that was repainted, of which the manifest has the hash.

        Raises:
            OutputError: it cannot be signed, as where the parent's own manifest is damaged.
        """
        actions: list[dict[str, Any]] = [
            {"action": "c2pa.created", "digitalSourceType": f"{SOURCE}trainedAlgorithmicMedia"}
        ]
        if parent:
            whole = f"{SOURCE}compositeWithTrainedAlgorithmicMedia"
            actions = [
                {"action": "c2pa.opened", "parameters": {"ingredientIds": [PARENT]}},
                {"action": "c2pa.edited", "digitalSourceType": whole},
            ]
        manifest = {
            "claim_generator_info": [{"name": "Overpaint", "version": version("overpaint")}],
            "format": MIME[kind],
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}],
        }
        out = BytesIO()
        try:
            builder = self._library.Builder(manifest, self._context)
            if parent:
                ingredient = {"title": "input", "relationship": "parentOf", "label": PARENT}
                builder.add_ingredient(ingredient, _mime(parent), BytesIO(parent.data))
            builder.sign(self._signer, MIME[kind], BytesIO(data), out)
        except self._library.C2paError as error:
            raise OutputError(f"the picture cannot be signed by C2PA: {error}") from error
        return out.getvalue()


def _read(field: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RequestError(field, f"{path} cannot be read: {error.strerror}.") from error


def _algorithm(path: Path, private: bytes) -> str:
    """C2PA's name of what a key signs by."""
    # c2pa-python brings it.
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(private, None)
    except (ValueError, TypeError) as error:
        raise RequestError(
            "c2pa_key", f"{path} is no private key in PEM without a password: {error}"
        ) from error
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in CURVES:
        return CURVES[key.curve.name]
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    raise RequestError("c2pa_key", f"{path}: C2PA knows EC (P-256, P-384, P-521), RSA and Ed25519.")


def _mime(picture: "Picture") -> str:
    with codec.open_image(picture.data, "the picture") as opened:
        return f"image/{str(opened.format).lower()}"


def _smallest() -> bytes:
    """The file of a picture of one pixel."""
    buffer = BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    return buffer.getvalue()
