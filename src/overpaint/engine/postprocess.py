"""Postprocessing: check, watermark and sign finished pictures before they are written.

It runs in the worker's process, in the thread that writes pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overpaint.errors import CheckpointError, ModelNotFoundError, RequestError
from overpaint.provenance.safety import Checker, Flag, check_images

if TYPE_CHECKING:
    from PIL.Image import Image

    from overpaint.picture import Picture
    from overpaint.provenance.c2pa import Credentials


@dataclass(frozen=True)
class PostprocessConfig:
    """Postprocessing that the operator wants; by default none.

    Attributes:
        checker: safety checker: a folder with a network, or `module:function`.
        device: device of the network; see `models.devices.place`.
        watermark: whether pictures get SDXL's invisible watermark.
        certificate: file (PEM) of the certificate chain for C2PA signatures.
        key: file (PEM) of the certificate's private key.
    """

    checker: str | None = None
    device: str = "auto"
    watermark: bool = False
    certificate: Path | None = None
    key: Path | None = None

    def check(self) -> None:
        """Check that everything exists, without loading a network.

        Raises:
            ModelNotFoundError: the checker does not exist.
            CheckpointError: the checker's folder lacks a file.
            RequestError: the certificate and key cannot sign, or one of them is missing.
        """
        self.credentials()
        if self.checker is None:
            return
        if _is_function(self.checker):
            package = self.checker.partition(":")[0].partition(".")[0]
            if not package.isidentifier() or find_spec(package) is None:
                raise _not_found(self.checker, f"there is no module {package!r}")
            return
        folder = Path(self.checker)
        if not folder.is_dir():
            raise ModelNotFoundError(
                f"The safety checker {self.checker!r} is neither a folder nor MODULE:FUNCTION."
            )
        for pattern in ("config.json", "preprocessor_config.json", "*.safetensors"):
            if not any(folder.glob(pattern)):
                raise CheckpointError(
                    f"{folder} has no {pattern}; a safety checker's folder needs it (weights are "
                    "read from safetensors alone: pickles can run any program)."
                )

    def credentials(self) -> "Credentials | None":
        """Return the certificate and key; None if pictures are not signed.

        Raises:
            RequestError: see `check`.
        """
        if self.certificate is None and self.key is None:
            return None
        if self.certificate is None or self.key is None:
            raise RequestError(
                "c2pa_certificate", "It needs its --c2pa-key too, and that needs this."
            )
        from overpaint.provenance.c2pa import Credentials

        return Credentials(self.certificate, self.key)


NO_POSTPROCESSING = PostprocessConfig()


class Postprocessor:
    """Applies the configured safety check, watermark and C2PA signature to finished pictures."""

    def __init__(self, config: PostprocessConfig):
        """Load the safety checker and the certificate.

        Raises:
            ModelNotFoundError, CheckpointError, DeviceError: see `open_checker`.
            RequestError: see `PostprocessConfig.check`.
        """
        self._credentials = config.credentials()
        self._watermark = config.watermark
        self._checker = open_checker(config.checker, config.device) if config.checker else None

    @property
    def checks(self) -> bool:
        """Return whether there is a safety checker."""
        return self._checker is not None

    def find_flagged(self, images: "Sequence[Image]", seeds: Sequence[int]) -> tuple[Flag, ...]:
        """Return the pictures of a request that the safety checker flags.

        Raises:
            SafetyError: the checker failed.
        """
        if self._checker is None:
            return ()
        # Not at the top: the command line reads these settings, and starts without numpy.
        from overpaint.imaging.color_modes import flatten

        return check_images(self._checker, [flatten(image) for image in images], seeds)

    def add_watermark(self, image: "Image") -> "tuple[Image, str | None]":
        """Return a picture with its watermark, and why it has none if that is not possible."""
        if not self._watermark:
            return image, None
        from overpaint.provenance import watermark  # imports OpenCV

        return watermark.add_watermark(image)

    def sign(self, data: bytes, kind: str, parent: "Picture | None") -> bytes:
        """Return a picture file with its C2PA signature, if there is a certificate.

        Args:
            data: the file.
            kind: "png", "jpg" or "webp".
            parent: the picture that was repainted.

        Raises:
            OutputError: the file cannot be signed.
        """
        return self._credentials.sign(data, kind, parent) if self._credentials else data


def open_checker(name: str, device: str = "auto") -> Checker:
    """Return a safety checker.

    Args:
        name: a folder with a network, or `module:function`.
        device: device of the network; see `models.devices.place`.

    Raises:
        ModelNotFoundError: the folder, module or function does not exist.
        CheckpointError: the folder does not hold a safety checker.
        DeviceError: the device does not exist.
    """
    if not _is_function(name):
        from overpaint.models.safety_checker import load_safety_checker

        return load_safety_checker(Path(name), device)
    module, _, function = name.partition(":")
    try:
        found: Any = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise _not_found(name, str(error)) from error
    return found


def _not_found(name: str, why: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"The safety checker {name!r} cannot be imported: {why}. Give a folder, or "
        "MODULE:FUNCTION that Python finds (see PYTHONPATH)."
    )


def _is_function(name: str) -> bool:
    """Return whether a checker is a function, and not a folder whose path has a colon."""
    return ":" in name and not Path(name).exists()
