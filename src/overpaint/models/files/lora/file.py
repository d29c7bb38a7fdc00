"""Open a LoRA: a safetensors file, a PEFT folder, or a folder with one PEFT folder for each part.

The contents of a PEFT folder are those of a single file with diffusers' metadata, so everything
else reads one layout.
"""

import json
from pathlib import Path
from typing import Any, cast

from overpaint.models.files.json_config import read_json_config
from overpaint.models.files.lazy_tensor import LazyTensor
from overpaint.models.files.lora.peft_config import METADATA_KEY
from overpaint.models.files.lora.peft_folder import list_peft_folders
from overpaint.models.files.safetensors_io import WeightsFile, open_weights

PARTS_BY_CLASS = {
    "UNet2DConditionModel": "unet",
    "CLIPTextModel": "text_encoder",
    "CLIPTextModelWithProjection": "text_encoder_2",
}
"""The part of a PEFT folder, by the class in its config's `auto_mapping`."""


def open_lora(path: Path) -> WeightsFile:
    """Read the header of a LoRA file, or of the files in a PEFT folder.

    Raises:
        CheckpointError: The file is damaged or a pickle, or the folder has no PEFT adapter.
    """
    if not path.is_dir():
        return open_weights(path)
    tensors: dict[str, LazyTensor] = {}
    metadata: dict[str, str] = {}
    configs: dict[str, Any] = {}
    for folder in list_peft_folders(path):
        config = read_json_config(folder.config)
        own = open_weights(folder.weights)
        part = folder.part or _find_part(config)
        metadata |= own.metadata
        prefix = f"{part}." if part else ""
        for key, tensor in own.tensors.items():
            tensors[prefix + key.removeprefix("base_model.model.")] = tensor
        configs |= {prefix + key: value for key, value in config.items()}
    return WeightsFile(path, tensors, metadata | {METADATA_KEY: json.dumps(configs)})


def _find_part(config: dict[str, Any]) -> str:
    """Return the part that a config's class belongs to, or "" if it has none."""
    mapping: Any = config.get("auto_mapping")
    if not isinstance(mapping, dict):
        return ""
    return PARTS_BY_CLASS.get(str(cast("dict[str, Any]", mapping).get("base_model_class")), "")
