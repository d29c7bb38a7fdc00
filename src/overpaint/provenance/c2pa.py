"""C2PA: a signed manifest inside a picture, which says that a model made it, and who signed.

The certificate and the key belong to the operator. Signing needs the package `c2pa-python`:
`pip install overpaint[c2pa]`. Signing uses no network: no timestamp authority, and no manifest that
a client's picture links to. Manifests hold no thumbnails, so that no file shows the input picture.
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

SOURCE_TYPE_URL = "http://cv.iptc.org/newscodes/digitalsourcetype/"
"""Prefix of IPTC's digital source types, which name the origin of a picture."""

ALGORITHM_BY_CURVE = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
"""Signature algorithm by the curve of an EC key. RSA keys use ps256, Ed25519 keys ed25519."""

MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}

SETTINGS: dict[str, Any] = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
}
PARENT_LABEL = "parent"


class Credentials:
    """Sign pictures with the operator's certificate and key."""

    def __init__(self, certificate: Path, key: Path):
        """Read the certificate and the key, and check that they can sign.

        Args:
            certificate: the chain in PEM, the signer's certificate first.
            key: the private key in PEM, without a password.

        Raises:
            RequestError: a file is missing, damaged or does not match the other, or c2pa-python is
                not installed.
        """
        try:
            import c2pa
        except ImportError as error:
            raise RequestError(
                "c2pa_certificate", f"It needs `pip install overpaint[c2pa]`: {error}."
            ) from error
        self._library: Any = c2pa
        chain = _read_file("c2pa_certificate", certificate)
        private = _read_file("c2pa_key", key)
        algorithm = _find_algorithm(key, private)
        try:
            info = c2pa.C2paSignerInfo(algorithm.encode(), chain, private, None)
            self._signer = c2pa.Signer.from_info(info)
            self._context = c2pa.Context.from_dict(SETTINGS)
            self.sign(_make_one_pixel_png(), "png", None)
        except (c2pa.C2paError, OutputError) as error:
            raise RequestError(
                "c2pa_certificate", f"{certificate} and {key} cannot sign: {error}"
            ) from error

    def sign(self, data: bytes, kind: str, parent: "Picture | None") -> bytes:
        """Return a picture's file with its manifest.

        Args:
            data: the file.
            kind: "png", "jpg" or "webp".
            parent: the picture that was repainted; the manifest holds its hash.

        Raises:
            OutputError: signing failed, for example because the parent's manifest is damaged.
        """
        actions: list[dict[str, Any]] = [
            {
                "action": "c2pa.created",
                "digitalSourceType": f"{SOURCE_TYPE_URL}trainedAlgorithmicMedia",
            }
        ]
        if parent:
            whole = f"{SOURCE_TYPE_URL}compositeWithTrainedAlgorithmicMedia"
            actions = [
                {"action": "c2pa.opened", "parameters": {"ingredientIds": [PARENT_LABEL]}},
                {"action": "c2pa.edited", "digitalSourceType": whole},
            ]
        manifest = {
            "claim_generator_info": [{"name": "Overpaint", "version": version("overpaint")}],
            "format": MEDIA_TYPES[kind],
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}],
        }
        out = BytesIO()
        try:
            builder = self._library.Builder(manifest, self._context)
            if parent:
                ingredient = {"title": "input", "relationship": "parentOf", "label": PARENT_LABEL}
                builder.add_ingredient(ingredient, _find_media_type(parent), BytesIO(parent.data))
            builder.sign(self._signer, MEDIA_TYPES[kind], BytesIO(data), out)
        except self._library.C2paError as error:
            raise OutputError(f"The picture cannot be signed by C2PA: {error}") from error
        return out.getvalue()


def _read_file(field: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RequestError(field, f"{path} cannot be read: {error.strerror}.") from error


def _find_algorithm(path: Path, private: bytes) -> str:
    """Return C2PA's name of the algorithm that a key signs with."""
    # c2pa-python brings it.
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(private, None)
    except (ValueError, TypeError) as error:
        raise RequestError(
            "c2pa_key", f"{path} is not a private key in PEM without a password: {error}"
        ) from error
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in ALGORITHM_BY_CURVE:
        return ALGORITHM_BY_CURVE[key.curve.name]
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    raise RequestError(
        "c2pa_key", f"{path}: C2PA signs with EC (P-256, P-384, P-521), RSA and Ed25519 keys."
    )


def _find_media_type(picture: "Picture") -> str:
    with codec.open_image(picture.data, "the picture") as opened:
        return f"image/{str(opened.format).lower()}"


def _make_one_pixel_png() -> bytes:
    """Encode a PNG of one pixel."""
    buffer = BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    return buffer.getvalue()
