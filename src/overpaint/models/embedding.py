"""Textual inversion: embeddings that add words to a prompt (arXiv 2208.01618).

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
"""The largest number of vectors in an embedding: the tokens in one chunk of a prompt."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """The vectors of a word.

    Attributes:
        name: Its name in prompts, `<embedding:name>`.
        sha256: The digest of the file.
        vectors: Vectors [n, H] for each text encoder ("text_encoder", "text_encoder_2"), with the
            same n.
    """

    name: str
    sha256: str
    vectors: dict[str, Tensor]

    @property
    def length(self) -> int:
        """The number of tokens that it takes in a prompt."""
        return len(next(iter(self.vectors.values())))


def load_embedding(path: str | PathLike[str], name: str, model: "Model") -> Embedding:
    """Read an embedding for a model's text encoders.

    Raises:
        CheckpointError: The file is not an embedding, is for another model, or is damaged.
    """
    file = open_weights(Path(path))
    if unknown := [key for key in file.tensors if key not in TEXT_ENCODERS_BY_KEY]:
        old = " (one vector set: for Stable Diffusion 1.5 or 2)" if "emb_params" in unknown else ""
        raise CheckpointError(
            f"{file.path} is not an embedding for SDXL{old}; its keys are "
            f"{sample_keys(file.tensors)}, "
            "expected are clip_l and clip_g"
        )
    vectors: dict[str, Tensor] = {}
    for key, stored in file.tensors.items():
        tensor = stored.read().float()
        vectors[TEXT_ENCODERS_BY_KEY[key]] = tensor[None] if tensor.ndim == 1 else tensor
        if not tensor.isfinite().all():
            raise CheckpointError(f"{file.path}: {key} holds numbers that are not finite")
    if missing := [part for part in model.encoders_by_part if part not in vectors]:
        raise CheckpointError(f"{file.path} has no vectors for {missing[0]}; the file is damaged")
    for part, encoder in model.encoders_by_part.items():
        width = encoder.model.config.hidden_size
        if vectors[part].ndim != 2 or vectors[part].shape[1] != width:
            raise CheckpointError(
                f"{file.path} is an embedding for another model: its vectors for {part} are "
                f"{list(vectors[part].shape)}, but must be {width} wide"
            )
    lengths = {len(v) for v in vectors.values()}
    if len(lengths) > 1 or not 1 <= max(lengths) <= MAX_EMBEDDING_VECTORS:
        raise CheckpointError(
            f"{file.path} has {', '.join(map(str, sorted(lengths)))} vectors; an embedding "
            f"must have 1 to {MAX_EMBEDDING_VECTORS}, and the same number for each text encoder"
        )
    return Embedding(name, compute_sha256((file.path,)), vectors)


Embeddings = tuple[Embedding, ...]
