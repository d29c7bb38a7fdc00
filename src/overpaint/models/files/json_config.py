"""JSON config files of checkpoints."""

import json
from pathlib import Path
from typing import Any

from overpaint.errors import CheckpointError

MAX_CONFIG_BYTES = 2**20


def read_json_config(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        CheckpointError: The file is missing, damaged, or does not hold an object.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(
                f"{path} has more than {MAX_CONFIG_BYTES:,} bytes, which is too large for a config"
            )
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return found
