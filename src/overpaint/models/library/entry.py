"""The description of a file in the library or in a folder of models."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import AliasChoices, BaseModel, Field

from overpaint.models.files.suffixes import WEIGHT_SUFFIXES

FileKind = Literal[
    "lora", "control", "embedding", "checkpoint", "unet", "vae", "text_encoder", "decoder"
]
"""A checkpoint has a UNet and other parts; the next three kinds are one part alone. A decoder is
tiny."""

PART_KINDS: Mapping[str, FileKind] = {
    "unet": "unet",
    "vae": "vae",
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder",
}
"""The kinds of files that have one part of a checkpoint alone."""

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
"""A name that is also a file name everywhere, so that it can name its description."""

MAX_NAME_CHARS = 100
TITLE_KEYS = ("modelspec.title", "ss_output_name")
HASH_KEYS = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
HASH_PATTERN = re.compile(r"(?:0x)?([0-9a-f]{8,64})")


class LibraryEntry(BaseModel, frozen=True):
    """The description of a file in the library.

    Attributes:
        name: The name for requests.
        kind: The kind of file.
        sha256: The digest of the file; "" for a file in a folder of models until it is needed.
        license: The license of its weights, if known. Older descriptions spell the key `licence`.
        file: The name of the original file.
        keys: The number of tensors in the file.
        rank: The largest rank of a LoRA; None for other kinds.
        trigger_words: The trigger words in a LoRA's metadata.
        metadata: The metadata in the file's header.
        tensors_sha256: The digest of the file without its header, if it was computed.
        embeddings: The names of the embeddings in a LoRA file.
        parts: The parts of a checkpoint that its file has: "unet", "vae", "text_encoder" and
            "text_encoder_2".
        path: The file's current path.
        place: The path of a file in a folder of models, relative to that folder.
    """

    name: str
    kind: FileKind
    sha256: str = Field(pattern="^([0-9a-f]{64})?$")  # it is part of a path
    license: str | None = Field(validation_alias=AliasChoices("license", "licence"))
    file: str
    keys: int
    rank: int | None = None
    trigger_words: tuple[str, ...] = ()
    metadata: dict[str, str] = {}
    tensors_sha256: str | None = None
    embeddings: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    path: Path = Field(default=Path(), exclude=True)
    place: str = Field(default="", exclude=True)

    @property
    def spellings(self) -> set[str]:
        """The name, and the file's name and place with and without the suffix, in lower case."""
        written = (self.name, self.file, self.place)
        return {strip_suffix(text).casefold() for text in written if text}

    @property
    def titles(self) -> set[str]:
        """The titles in its metadata, in lower case."""
        return {self.metadata[key].casefold() for key in TITLE_KEYS if self.metadata.get(key)}

    def has_hash(self, digits: str) -> bool:
        """Return whether one of its digests starts with these hexadecimal digits."""
        known = [self.sha256, self.tensors_sha256 or ""]
        known += [self.metadata.get(key, "").lower().removeprefix("0x") for key in HASH_KEYS]
        return any(digest.startswith(digits) for digest in known if digest)


def strip_suffix(name: str) -> str:
    """Return a file's name or path with slashes and without the suffix of weights."""
    name = name.replace("\\", "/").removeprefix("./")
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in WEIGHT_SUFFIXES else name


def is_valid_name(name: str) -> bool:
    """Return whether a name can be used in requests and in tags such as `<lora:NAME>`."""
    return (
        0 < len(name) <= MAX_NAME_CHARS
        and name.isprintable()
        and name == name.strip()
        and not set(name) & set("<>:/\\")
        and not name.startswith(".")
    )
