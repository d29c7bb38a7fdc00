"""Parts of a model in their own files, as the commands that paint take them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from overpaint.cli.common import Common
from overpaint.cli.terminal import Terminal
from overpaint.request import Request

if TYPE_CHECKING:
    from overpaint.models.model import Model


def choose_parts(
    common: Common, record: Mapping[str, Any], request: Request
) -> dict[str, str | None]:
    """Return the parts in their own files: of the options, else of the `--like` picture.

    A VAE is a field of the request. A model without one needs it while it loads.

    Args:
        common: the options of the command.
        record: the record of the picture, whose parts count only without `--model`; or nothing.
        request: the first request.
    """
    before = {} if common.model else record.get("model", {}).get("parts", {})
    given = {
        "vae": request.vae,
        "unet": common.unet,
        "text_encoder": common.text_encoder,
        "text_encoder_2": common.text_encoder_2,
    }
    return {part: own or before.get(part, {}).get("name") for part, own in given.items()}


def note_other_parts(terminal: Terminal, record: Mapping[str, Any], model: "Model") -> None:
    """Note each part in its own file that differs from the one that made the `--like` picture."""
    for part, own in record.get("model", {}).get("parts", {}).items():
        now = model.parts.get(part)
        if now is None or now.sha256 != own["sha256"]:
            terminal.note(
                f"the {part} differs from {own['name']}, which made the picture; pixels may differ."
            )
