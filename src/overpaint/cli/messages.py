"""Error messages with the names of options in place of fields."""

from overpaint.cli.settings import FLAG_OF_FIELD
from overpaint.errors import OverpaintError, RequestError

ARGUMENT_OF_FIELD = FLAG_OF_FIELD | {
    "prompt": "PROMPT",
    "image": "PICTURE",
    "device": "--device",
    "dtype": "--dtype",
    "vram_gb": "--vram",
    "ram_gb": "--ram",
    "model": "--model",
    "kind": "KIND",
    "options": "--option",
    "estimator": "--estimator",
    "host": "--host",
    "port": "--port",
    "otel": "--otel",
    "output": "--output",
    "allowed_origin": "--allowed-origin",
    "c2pa_certificate": "--c2pa-certificate",
    "c2pa_key": "--c2pa-key",
    "profile": "--profile",
    "until": "--until",
    "price": "--price",
}
"""The argument or option of each field that an error can name."""


def format_message(error: OverpaintError) -> str:
    """Return the error's message, with the argument or option in place of the field's name."""
    text = str(error)
    if isinstance(error, RequestError):
        name = ARGUMENT_OF_FIELD.get(error.field.split(".")[0], error.field)
        return name + text.removeprefix(error.field)
    return text
