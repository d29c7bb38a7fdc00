"""Textual inversion: embeddings that add words to a prompt (arXiv 2208.01618).

| layout | keys |
|---|---|
| kohya's, A1111's and OneTrainer's for SDXL | `clip_l` [n, 768], `clip_g` [n, 1280] |
| Replicate's `embeddings.pti` | `text_encoders_0`, `text_encoders_1` |
| diffusers' for one text encoder | the token, such as `<toy>`: [n, 768] or [n, 1280] |
| in a LoRA, by OneTrainer and A1111 | `bundle_emb.NAME.clip_l`, `bundle_emb.NAME.clip_g` |

A file can have vectors for one text encoder alone; the other one then reads the prompt without the
word, as in ComfyUI.
"""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from overpaint.errors import CheckpointError
from overpaint.models.files.digests import compute_sha256
from overpaint.models.files.lazy_tensor import LazyTensor
from overpaint.models.files.lora.keys import split_bundled_key, strip_brackets
from overpaint.models.files.safetensors_io import WeightsFile, open_weights, sample_keys

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
            same n. An encoder without vectors ignores the word.
        ignored_by: The text encoders without vectors.
    """

    name: str
    sha256: str
    vectors: dict[str, Tensor]
    ignored_by: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """The number of tokens that it takes in a prompt."""
        return len(next(iter(self.vectors.values())))


def load_embedding(
    path: str | PathLike[str], name: str, model: "Model", *, bundled: bool = False
) -> Embedding:
    """Read an embedding for a model's text encoders.

    Args:
        path: The file.
        name: Its name in prompts.
        model: The model.
        bundled: Whether the file is a LoRA that holds the embedding of that name.

    Raises:
        CheckpointError: The file is not an embedding, is for another model, or is damaged.
    """
    file = open_weights(Path(path))
    widths = {
        part: int(encoder.model.config.hidden_size)
        for part, encoder in model.encoders_by_part.items()
    }
    vectors: dict[str, Tensor] = {}
    for key, stored in _list_vectors(file, name, bundled=bundled).items():
        tensor = stored.read().float()
        if not tensor.isfinite().all():
            raise CheckpointError(f"{file.path}: {key} holds numbers that are not finite")
        if tensor.ndim not in (1, 2):
            raise CheckpointError(f"{file.path}: {key} has {tensor.ndim} axes, not 1 or 2")
        tensor = tensor[None] if tensor.ndim == 1 else tensor
        part = TEXT_ENCODERS_BY_KEY.get(key) or _find_encoder(tensor, widths, file)
        vectors[part] = tensor
    for part, width in widths.items():
        if part in vectors and (vectors[part].ndim != 2 or vectors[part].shape[1] != width):
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
    ignored = tuple(part for part in widths if part not in vectors)
    return Embedding(name, compute_sha256((file.path,)), vectors, ignored)


def _list_vectors(file: WeightsFile, name: str, *, bundled: bool) -> dict[str, LazyTensor]:
    """Return the tensors of an embedding by the encoder's key, or by the token.

    Raises:
        CheckpointError: The file is not an embedding for SDXL.
    """
    tensors = file.tensors
    if bundled:
        split = {key: split_bundled_key(key) for key in tensors}
        tensors = {
            own[1]: tensors[key]
            for key, own in split.items()
            if own and strip_brackets(own[0]) == name
        }
    unknown = [key for key in tensors if key not in TEXT_ENCODERS_BY_KEY]
    if outputs := [key for key in unknown if key.endswith("_out")]:
        raise CheckpointError(
            f"{file.path} changes the output of a text encoder ({sample_keys(outputs)}), which "
            "Overpaint cannot do. Train the embedding without output vectors."
        )
    one_token = len(tensors) == 1 and "emb_params" not in tensors
    if not tensors or (unknown and not one_token):
        old = " (one vector set: for Stable Diffusion 1.5 or 2)" if "emb_params" in unknown else ""
        raise CheckpointError(
            f"{file.path} is not an embedding for SDXL{old}; its keys are "
            f"{sample_keys(file.tensors) or 'none'}, expected are clip_l and clip_g"
        )
    return tensors


def _find_encoder(tensor: Tensor, widths: dict[str, int], file: WeightsFile) -> str:
    """Return the text encoder that a token's vectors fit."""
    for part, width in widths.items():
        if tensor.shape[-1] == width:
            return part
    if len(widths) == 1 and tensor.shape[-1] != next(iter(widths.values())):
        return "text_encoder"  # a refiner has the second one alone
    raise CheckpointError(
        f"{file.path} is an embedding for another model: its vectors are {list(tensor.shape)}, "
        f"but must be {' or '.join(map(str, widths.values()))} wide"
    )


Embeddings = tuple[Embedding, ...]
