"""Textual inversion: words that were learnt as vectors (arXiv 2208.01618).

| layout | keys |
|---|---|
| kohya's and A1111's for SDXL | `clip_l` [n, 768], `clip_g` [n, 1280] |
| Replicate's `embeddings.pti` | `text_encoders_0`, `text_encoders_1` |
"""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from overpaint.errors import CheckpointError
from overpaint.models.files.digests import compute_sha256
from overpaint.models.files.safetensors_io import open_weights, sample_keys

if TYPE_CHECKING:
    from overpaint.models.model import Model

TEXT_ENCODERS_BY_KEY = {
    "clip_l": "text_encoder",
    "text_encoders_0": "text_encoder",
    "clip_g": "text_encoder_2",
    "text_encoders_1": "text_encoder_2",
}
MAX_EMBEDDING_VECTORS = 75
"""Vectors of one embedding: what a chunk of a prompt holds."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """A word's vectors.

    Attributes:
        name: that it is written by, `<embedding:name>`.
        sha256: of the file.
        vectors: part of the model ("text_encoder", "text_encoder_2") to [n, H], as many for each.
    """

    name: str
    sha256: str
    vectors: dict[str, Tensor]

    @property
    def length(self) -> int:
        """How many tokens it takes."""
        return len(next(iter(self.vectors.values())))


def load_embedding(path: str | PathLike[str], name: str, model: "Model") -> Embedding:
    """Read an embedding for a model's text encoders.

    Raises:
        CheckpointError: none, one for another model, or damaged.
    """
    file = open_weights(Path(path))
    if unknown := [key for key in file.tensors if key not in TEXT_ENCODERS_BY_KEY]:
        old = " (one vector set: for Stable Diffusion 1.5 or 2)" if "emb_params" in unknown else ""
        raise CheckpointError(
            f"{file.path}: no embedding of SDXL's{old}; its keys are {sample_keys(file.tensors)}, "
            f"expected clip_l and clip_g"
        )
    vectors: dict[str, Tensor] = {}
    for key, stored in file.tensors.items():
        tensor = stored.read().float()
        vectors[TEXT_ENCODERS_BY_KEY[key]] = tensor[None] if tensor.ndim == 1 else tensor
        if not tensor.isfinite().all():
            raise CheckpointError(f"{file.path}: {key} holds numbers that are not finite")
    if missing := [part for part in model.encoders_by_part if part not in vectors]:
        raise CheckpointError(f"{file.path}: nothing for {missing[0]}; the file is damaged")
    for part, encoder in model.encoders_by_part.items():
        width = encoder.model.config.hidden_size
        if vectors[part].ndim != 2 or vectors[part].shape[1] != width:
            raise CheckpointError(
                f"{file.path}: vectors of {list(vectors[part].shape)} for {part}, whose own are "
                f"{width} wide: an embedding for another model"
            )
    lengths = {len(v) for v in vectors.values()}
    if len(lengths) > 1 or not 1 <= max(lengths) <= MAX_EMBEDDING_VECTORS:
        raise CheckpointError(
            f"{file.path}: {', '.join(map(str, sorted(lengths)))} vectors; "
            f"an embedding has 1 to {MAX_EMBEDDING_VECTORS}, as many for each text encoder"
        )
    return Embedding(name, compute_sha256((file.path,)), vectors)


Embeddings = tuple[Embedding, ...]
