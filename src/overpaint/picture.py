"""A picture as a value: the bytes of an image file."""

import hashlib
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Picture(BaseModel):
    """An encoded image file (PNG, JPEG, WebP …) that is not decoded yet.

    Two pictures are equal if their bytes are equal. JSON holds the bytes as base64.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        ser_json_bytes="base64",
        val_json_bytes="base64",
        use_attribute_docstrings=True,
    )

    data: bytes = Field(repr=False)
    """The content of the file."""

    @cached_property
    def sha256(self) -> str:
        """The hex digest of the bytes, which names the picture in caches and metadata."""
        return hashlib.sha256(self.data).hexdigest()

    def __getstate__(self) -> dict[Any, Any]:
        """Return what pickling keeps: the file alone, without the pixels that the codec keeps.

        They are many times as large, and another process decodes the file anyway.
        """
        state = super().__getstate__()
        return {**state, "__dict__": {"data": self.data}}
