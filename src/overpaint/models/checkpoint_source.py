"""A checkpoint whose tensors are not read yet."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from transformers import CLIPTokenizer

from overpaint.models.family import Configs
from overpaint.models.files.lazy_tensor import LazyTensor
from overpaint.models.latent_preview import LatentPreview
from overpaint.models.model import PartFile
from overpaint.models.noise_config import NoiseConfig

Tensors = Mapping[str, LazyTensor]


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint whose tensors are not read yet.

    Attributes:
        configs: The configs of its parts.
        tensors: The tensors by part and state dict name.
        tokenizers: The tokenizers by text encoder.
        noise: The noise schedule of training.
        files: The weight files, in the order of hashing.
        preview: The linear map for previews in the checkpoint, if any.
        notices: Messages about the checkpoint.
        metadata: The metadata in the header of a single file.
        separate: The parts that came from their own files.
    """

    configs: Configs
    tensors: Mapping[str, Tensors]
    tokenizers: Mapping[str, CLIPTokenizer]
    noise: NoiseConfig
    files: tuple[Path, ...]
    preview: LatentPreview | None = None
    notices: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    separate: Mapping[str, PartFile] = field(default_factory=dict[str, PartFile])
