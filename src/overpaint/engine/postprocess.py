"""What is done to a job's pictures between the last step and the disk, as the operator says.

They are checked, marked and signed: in the worker's process, beside the steps.
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
    """What is to be done; by default nothing.

    Attributes:
        checker: what flags pictures: a folder with a network, or `module:function`.
        device: where a network computes, as `models.devices.place` takes it.
        watermark: pictures get an invisible one.
        certificate: the operator's, PEM, that pictures are signed with by C2PA.
        key: its private key, PEM.
    """

    checker: str | None = None
    device: str = "auto"
    watermark: bool = False
    certificate: Path | None = None
    key: Path | None = None

    def check(self) -> None:
        """See that all this is there, without loading a network.

        Raises:
            ModelNotFoundError: there is no such checker.
            CheckpointError: its folder lacks a file.
            RequestError: the certificate and key cannot sign, or one is given alone.
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
                f"the safety checker {self.checker!r} is neither a folder nor MODULE:FUNCTION."
            )
        for pattern in ("config.json", "preprocessor_config.json", "*.safetensors"):
            if not any(folder.glob(pattern)):
                raise CheckpointError(
                    f"{folder} has no {pattern}; a safety checker's folder needs it (weights are "
                    "read from safetensors alone: pickles can run any program)."
                )

    def credentials(self) -> "Credentials | None":
        """What signs pictures.

        Raises:
            RequestError: as `check`.
        """
        if self.certificate is None and self.key is None:
            return None
        if self.certificate is None or self.key is None:
            raise RequestError("c2pa_certificate", "needs its --c2pa-key too, and that needs this.")
        from overpaint.provenance.c2pa import Credentials

        return Credentials(self.certificate, self.key)


NO_POSTPROCESSING = PostprocessConfig()


class Finisher:
    """Does it."""

    def __init__(self, asked: PostprocessConfig):
        """Load what it takes.

        Raises:
            ModelNotFoundError, CheckpointError, DeviceError: as `open_checker`.
            RequestError: as `PostprocessConfig.check`.
        """
        self._credentials = asked.credentials()
        self._watermark = asked.watermark
        self._checker = open_checker(asked.checker, asked.device) if asked.checker else None

    @property
    def checks(self) -> bool:
        """Whether pictures are checked."""
        return self._checker is not None

    def flags(self, images: "Sequence[Image]", seeds: Sequence[int]) -> tuple[Flag, ...]:
        """Pictures of one request that are not to be published.

        Raises:
            SafetyError: the checker failed.
        """
        return check_images(self._checker, images, seeds) if self._checker else ()

    def marked(self, image: "Image") -> "tuple[Image, str | None]":
        """A picture with its watermark if there is to be one, and what is to be said of it."""
        if not self._watermark:
            return image, None
        from overpaint.provenance import watermark  # imports OpenCV

        return watermark.add_watermark(image)

    def signed(self, data: bytes, kind: str, parent: "Picture | None") -> bytes:
        """The file of a picture of a `kind`, signed if it is to be; `parent` was repainted.

        Raises:
            OutputError: it cannot be signed.
        """
        return self._credentials.sign(data, kind, parent) if self._credentials else data


def open_checker(name: str, device: str = "auto") -> Checker:
    """The checker of a name.

    Args:
        name: a folder with a network, or `module:function` of the operator's own.
        device: where a network computes, as `models.devices.place` takes it.

    Raises:
        ModelNotFoundError: there is no such folder, module or function.
        CheckpointError: the folder does not hold such a network.
        DeviceError: there is no such device.
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
        f"the safety checker {name!r} cannot be imported: {why}. Give a folder, or "
        "MODULE:FUNCTION that Python finds (see PYTHONPATH)."
    )


def _is_function(name: str) -> bool:
    """Whether a checker's name is not a folder's, which may have a colon in it too."""
    return ":" in name and not Path(name).exists()
