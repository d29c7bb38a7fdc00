"""Tell the kind of a safetensors file from its header, without torch."""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

from overpaint.errors import CheckpointError
from overpaint.models.files import key_patterns
from overpaint.models.files.lora import keys as lora_keys
from overpaint.models.library.entry import FileKind, LibraryEntry

KEY_PATTERNS: dict[FileKind, str] = {
    "control": r"lora_controlnet|input_hint_block|controlnet_cond_embedding|^(adapter\.)?body\.",
    "lora": key_patterns.LORA_KEYS,
    "embedding": r"^(clip_[lg](_out)?|text_encoders_\d|emb_params)$",
    "checkpoint": r"^model\.diffusion_model\.",
    "unet": key_patterns.UNET_KEYS,
    "decoder": key_patterns.TINY_DECODER_KEYS,
    "vae": key_patterns.VAE_KEYS,
    "text_encoder": key_patterns.TEXT_ENCODER_KEYS,
}
"""Patterns of keys that identify the kind of a file; the first match counts."""

MAX_TRIGGER_WORDS = 20
MAX_TRIGGER_CHARS = 1000

MAX_HEADER_BYTES = 25_000_000
"""The limit for files in folders of models. The header of an SDXL checkpoint has 400,000 bytes."""


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file.

    Attributes:
        path: The file.
        shapes: The shape of each tensor by key.
        metadata: The metadata.
    """

    path: Path
    shapes: Mapping[str, Sequence[int]]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file.

    Raises:
        CheckpointError: The file is not a safetensors file, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= MAX_HEADER_BYTES:
                raise CheckpointError(f"{path} is not a safetensors file")
            header: Any = json.loads(file.read(length))
        metadata: Any = header.pop("__metadata__", None) or {}
        shapes = {str(key): [int(n) for n in entry["shape"]] for key, entry in header.items()}
        texts = {key: value for key, value in metadata.items() if isinstance(value, str)}
        "".join((*shapes, *texts, *texts.values())).encode()  # fails at half of a surrogate pair
    except (
        *(OSError, ValueError, OverflowError, RecursionError),
        *(AttributeError, KeyError, TypeError),
    ) as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
    return Header(path, shapes, cast("dict[str, str]", texts))


def find_kind(header: Header) -> FileKind | None:
    """Return the kind of a file by its keys, or None for an unknown kind."""
    for kind, pattern in KEY_PATTERNS.items():
        if any(re.search(pattern, key) for key in header.shapes):
            return kind
    return "embedding" if _is_token_embedding(header) else None


def _is_token_embedding(header: Header) -> bool:
    """Return whether a file has the vectors of one token, as diffusers writes them.

    The key is the token, which can be any text. A file counts if the token is in angle brackets,
    or if the file is named for it or lies in a folder for embeddings.
    """
    if len(header.shapes) != 1:
        return False
    [(key, shape)] = header.shapes.items()
    place = f"{header.path.parent.name}/{header.path.name}".lower()
    named = (key[:1], key[-1:]) == ("<", ">") or "embed" in place
    return len(shape) in (1, 2) and "." not in key and named


def describe(header: Header, name: str, sha256: str, license: str | None = None) -> LibraryEntry:
    """Describe a file by its keys and metadata.

    Raises:
        CheckpointError: The file is of an unknown kind, or an adapter that Overpaint cannot read.
    """
    kind = find_kind(header)
    keys = list(header.shapes)
    if kind is None:
        raise CheckpointError(
            f"{header.path} is neither a LoRA nor a ControlNet nor an embedding nor a "
            f"checkpoint or a part of one; its keys are {', '.join(keys[:5]) or 'none'}"
        )
    bundled: tuple[str, ...] = ()
    ranks: list[int] = []
    if kind == "lora":
        if what := lora_keys.describe_foreign_adapter(keys):
            raise CheckpointError(f"{header.path} is {what}, which Overpaint cannot read")
        bundled = lora_keys.list_bundled_embeddings(keys)
        for key, shape in header.shapes.items():
            if (split := lora_keys.split_lora_key(key)) and split[1] == "down" and shape:
                ranks.append(shape[0])
    return LibraryEntry(
        name=name,
        kind=kind,
        sha256=sha256,
        license=license or header.metadata.get("modelspec.license"),
        file=header.path.name,
        keys=len(keys),
        rank=max(ranks, default=None),
        trigger_words=tuple(_list_trigger_words(header.metadata)),
        metadata=dict(header.metadata),
        embeddings=bundled,
        parts=list_parts(keys) if kind == "checkpoint" else (),
        path=header.path,
    )


def list_parts(keys: Collection[str]) -> tuple[str, ...]:
    """Return the parts of a checkpoint whose keys are in its file."""
    return tuple(
        part
        for part, prefixes in key_patterns.PART_PREFIXES.items()
        if any(key.startswith(prefixes) for key in keys)
    )


def _list_trigger_words(metadata: Mapping[str, str]) -> Iterator[str]:
    """Yield a LoRA's trigger words: those of ModelSpec, else the most frequent tags of kohya."""
    if phrase := metadata.get("modelspec.trigger_phrase"):
        yield phrase[:MAX_TRIGGER_CHARS]
        return
    counts = _count_tags(metadata.get("ss_tag_frequency", "{}"))
    most = max(counts.values(), default=0)
    frequent = (tag for tag, count in counts.items() if count == most)
    yield from (tag[:MAX_TRIGGER_CHARS] for tag in islice(frequent, MAX_TRIGGER_WORDS))


def _count_tags(text: str) -> dict[str, int]:
    """Add up kohya's counts of tags, a map for each folder; ignore all that has another shape."""
    try:
        folders: Any = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    counts: dict[str, int] = {}
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if type(count) is int:
                counts[tag.strip()] = counts.get(tag.strip(), 0) + count
    return counts
