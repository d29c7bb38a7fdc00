"""Networks that estimate depth or classes in a picture, for control images.

A folder has the format of transformers: `config.json`, `preprocessor_config.json`, safetensors.

| `model_type` | published as | estimates |
|---|---|---|
| `depth_anything` | Depth Anything (arXiv 2401.10891) and V2 (2406.09414), also metric | depth |
| `dpt` | DPT (arXiv 2103.13413), also as MiDaS 3 (1907.01341) | depth |
| `zoedepth` | ZoeDepth (arXiv 2302.12288) | depth |
| `upernet` | UperNet (arXiv 1807.10221) on any backbone | classes |
| `oneformer` | OneFormer (arXiv 2211.06220) | classes |
"""

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from transformers.utils import logging

from overpaint.errors import CheckpointError, DeviceError
from overpaint.imaging.hints.drawing import ADE20K_PALETTE
from overpaint.models.files import weight_variants
from overpaint.models.files.clip_vocabulary import load_tokenizer
from overpaint.models.files.digests import compute_sha256
from overpaint.models.files.json_config import read_json_config
from overpaint.models.files.safetensors_io import open_weights, sample_keys
from overpaint.models.library import catalog
from overpaint.models.library.hub import ESTIMATOR_CONFIG_FILES
from overpaint.registry import Sight

ESTIMATOR_CLASSES: dict[str, tuple[str, Sight]] = {
    "depth_anything": ("DepthAnythingForDepthEstimation", "depth"),
    "dpt": ("DPTForDepthEstimation", "depth"),
    "zoedepth": ("ZoeDepthForDepthEstimation", "depth"),
    "upernet": ("UperNetForSemanticSegmentation", "classes"),
    # OneFormerForUniversalSegmentation adds only a loss, which needs scipy.
    "oneformer": ("OneFormerModel", "classes"),
}
"""The transformers class and the kind of estimate for each `model_type`."""

DEFAULT_PROCESSORS = {
    "depth_anything": "DPTImageProcessor",
    "dpt": "DPTImageProcessor",
    "zoedepth": "ZoeDepthImageProcessor",
    "upernet": "SegformerImageProcessor",
    "oneformer": "OneFormerImageProcessor",
}
"""The default image processor of each `model_type`."""

UNUSED_PARAMETERS = re.compile(r"neck\.fusion_stage\.layers\.0\.residual_layer1\.")
"""Keys of parameters that the forward pass does not read, so that files need not have them."""

TRAINING_KEYS = re.compile(r"criterion\.|(model\.)?text_mapper\.|.*\.relative_position_index$")
"""Keys that files can have but the module ignores: OneFormer's loss, and computed indices."""

MIN_DISTANCE_M = 0.1
"""Smallest distance in meters: nearer estimates are clamped, so that outliers do not dominate."""


@dataclass(frozen=True, eq=False)
class Estimator:
    """An estimator on a device.

    Attributes:
        name: The name that the user gave.
        sha256: The digest of its configs and weights.
        sight: The kind of estimate, "depth" or "classes".
        module: The network, in evaluation mode without gradients.
        processor: The image processor of transformers.
        metric: Whether it estimates distance in meters instead of inverse distance.
        border: The padding of its inputs on each side, in units of √(side / 2) pixels.
        task: OneFormer's task tokens [1, 77]; None for others.
        unused: Keys of its file that match no parameter.
    """

    name: str
    sha256: str
    sight: Sight
    module: Any
    processor: Any
    metric: bool = False
    border: int = 0
    task: Tensor | None = None
    unused: tuple[str, ...] = ()

    @torch.inference_mode()
    def estimate(self, picture: Image.Image) -> NDArray[Any]:
        """Estimate depth or classes of an RGB picture.

        Returns:
            [h, w], of the picture's size. Depth is float32; larger values are nearer. MiDaS, DPT
            and Depth Anything estimate inverse distance up to a factor and an offset. Metric
            estimates in meters are inverted, so that all estimators make similar control images.
            Classes are int64, from 0 to 149, in ADE20K's order.

        Raises:
            DeviceError: The result is not finite, or the device ran out of memory.
        """
        device, dtype = self.module.device, self.module.dtype
        inputs = self.processor(images=[picture], return_tensors="pt")
        pixels = inputs["pixel_values"].to(dtype).to(device)
        further = {} if self.task is None else {"task_inputs": self.task.to(device)}
        size = (picture.height, picture.width)
        try:
            output = self.module(pixel_values=pixels, **further)
            depth = self.sight == "depth"
            seen = output.predicted_depth.float() if depth else score_classes(output)
            if not seen.isfinite().all():
                raise DeviceError(
                    f"The estimate of {self.name} in {dtype} is not finite. Its weights can be "
                    "damaged, or exceed the range of fp16: load the model in bf16 or fp32."
                )
            values = self._near(seen, size) if depth else pick_strongest_class(seen, size)
        except torch.OutOfMemoryError as error:
            raise DeviceError(f"{device} ran out of memory for {self.name}: {error}") from error
        return values.cpu().numpy()

    def _near(self, estimate: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize an estimate [1, H, W] to inverse distances [h, w]."""
        height, width = size
        down, across = (int(np.sqrt(side / 2) * self.border) for side in size)
        padded = (height + 2 * down, width + 2 * across)
        larger = interpolate(estimate[None], padded, mode="bicubic", align_corners=False)[0, 0]
        found = larger[down : down + height, across : across + width]
        return 1 / found.clamp(min=MIN_DISTANCE_M) if self.metric else found


def score_classes(output: Any) -> Tensor:
    """Return the score of each of the 150 classes at each position, [150, h, w]."""
    if "logits" in output:
        return output.logits[0].float()
    # OneFormer: each query has class scores (the last is "no class") and a mask.
    named = output.transformer_decoder_class_predictions[0].float().softmax(-1)[:, :-1]
    placed = output.transformer_decoder_mask_predictions[0].float().sigmoid()
    return torch.einsum("qc,qhw->chw", named, placed)


def pick_strongest_class(seen: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the class with the highest score at each pixel [h, w], from [classes, H, W].

    The function enlarges one class at a time: all at once need the memory of 150 pictures.
    """
    best = seen.new_full(size, -torch.inf)
    found = torch.zeros(size, dtype=torch.int64, device=seen.device)
    for number, score in enumerate(seen):
        larger = interpolate(score[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        stronger = larger > best
        best = torch.where(stronger, larger, best)
        found.masked_fill_(stronger, number)
    return found


def load_estimator(
    name: str | PathLike[str], sight: Sight, device: torch.device, dtype: torch.dtype
) -> Estimator:
    """Load an estimator.

    Args:
        name: A name in `catalog.ESTIMATORS`, a folder, or a hub id.
        sight: The required kind of estimate, "depth" or "classes".
        device: The device.
        dtype: The dtype of floating-point tensors; always fp32 on the CPU.

    Raises:
        ModelNotFoundError: The name, folder or repository does not exist, or the hub is not
            reachable.
        CheckpointError: The `model_type` is unknown or makes another kind of estimate. Or the
            weights are a pickle, damaged or incomplete.
    """
    folder = catalog.resolve_estimator(str(name))
    family = str(read_json_config(folder / "config.json").get("model_type"))
    if family not in ESTIMATOR_CLASSES:
        raise CheckpointError(
            f"{folder} has model_type {family!r}; Overpaint supports {', '.join(ESTIMATOR_CLASSES)}"
        )
    kind, sees = ESTIMATOR_CLASSES[family]
    if sees != sight:
        raise CheckpointError(
            f"{folder}: {family} estimates {sees}; this control image needs {sight}"
        )
    try:
        return _load(str(name), folder, family, getattr(transformers, kind), device, dtype)
    except CheckpointError:
        raise
    except Exception as error:  # a broken config can cause any error in the library
        raise CheckpointError(f"{folder} cannot be loaded as {family}: {error}") from error


def _load(
    name: str, folder: Path, family: str, kind: Any, device: torch.device, dtype: torch.dtype
) -> Estimator:
    dtype = torch.float32 if device.type == "cpu" else dtype
    config = kind.config_class.from_dict(read_json_config(folder / "config.json"))
    if ESTIMATOR_CLASSES[family][1] == "classes" and config.num_labels != len(ADE20K_PALETTE):
        raise CheckpointError(
            f"{folder} estimates {config.num_labels} classes; segmentation needs ADE20K's "
            f"{len(ADE20K_PALETTE)}"
        )
    task = None
    if family == "oneformer":
        config.is_training = False  # training mode applies dropout and expects text
        task = _tokenize_task(folder, int(config.task_seq_len))
    processor = load_processor(folder, DEFAULT_PROCESSORS[family])
    try:
        names = weight_variants.choose_weight_files(
            (e.name for e in folder.iterdir()), half=dtype != torch.float32
        )
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    files = tuple(folder / file for file in names)
    module, unused = _load_module(kind, config, files, dtype)
    padded = family == "zoedepth" and processor.do_pad
    return Estimator(
        name,
        compute_sha256((*(folder / config for config in ESTIMATOR_CONFIG_FILES), *files)),
        ESTIMATOR_CLASSES[family][1],
        module.to(device).eval().requires_grad_(False),
        processor,
        metric=family == "zoedepth" or getattr(config, "depth_estimation_type", "") == "metric",
        border=3 if padded else 0,
        task=task,
        unused=unused,
    )


def _load_module(
    kind: Any, config: Any, files: tuple[Path, ...], dtype: torch.dtype
) -> tuple[Any, tuple[str, ...]]:
    """Load the network, and return it with the keys that it does not use.

    The function uses the loader of transformers, which knows key names of earlier releases.
    """
    tensors = {k: stored.read() for f in files for k, stored in open_weights(f).tensors.items()}
    with _silence_transformers():
        module, said = kind.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    faults = {
        "missing": [
            key for key in sorted(said["missing_keys"]) if not UNUSED_PARAMETERS.match(key)
        ],
        "of another shape": [str(entry[0]) for entry in said["mismatched_keys"]],
    }
    if any(faults.values()):
        listed = (
            f"{len(keys)} {what}: {sample_keys(keys)}" for what, keys in faults.items() if keys
        )
        raise CheckpointError(f"{files[0]} does not fit its config; keys {'; '.join(listed)}")
    unused = (key for key in sorted(said["unexpected_keys"]) if not TRAINING_KEYS.match(key))
    return module, tuple(unused)


def load_processor(folder: Path, default: str) -> Any:
    """Load a folder's image processor of transformers, in its variant that uses Pillow.

    The other variants need torchvision.

    Args:
        folder: A folder with `preprocessor_config.json`.
        default: The class name if the file does not have one.

    Raises:
        CheckpointError: The file is missing or damaged, or its class does not exist.
    """
    settings = read_json_config(folder / "preprocessor_config.json")
    # Older files name a feature extractor; others name the variant that wrote them.
    names = (settings.pop(key, None) for key in ("image_processor_type", "feature_extractor_type"))
    asked = next((str(name) for name in names if name), default)
    base = asked.replace("FeatureExtractor", "ImageProcessor")
    name = f"{base.removesuffix('Fast').removesuffix('Pil')}Pil"
    if not name.endswith("ImageProcessorPil") or not hasattr(transformers, name):
        raise CheckpointError(
            f"{folder / 'preprocessor_config.json'} asks for {asked!r}, which transformers "
            f"{transformers.__version__} does not have"
        )
    # With this key, OneFormer's processor looks up class names on the hub, for training.
    settings.pop("class_info_file", None)
    processor = getattr(transformers, name)(**settings)
    processor(images=[Image.new("RGB", (64, 64))])  # fail here on invalid settings
    return processor


def _tokenize_task(folder: Path, length: int) -> Tensor:
    """Tokenize OneFormer's task: [1, length], padded with zeros."""
    tokens = load_tokenizer(folder)(
        "the task is semantic",
        padding="max_length",
        max_length=length,
        truncation=True,
        return_tensors="pt",
    )
    return tokens["input_ids"] * tokens["attention_mask"]


@contextmanager
def _silence_transformers() -> Generator[None]:
    """Disable the log messages and progress bars of transformers.

    Overpaint raises errors for wrong files instead.
    """

    def no_bar(factory: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        return factory(*args, **{**kwargs, "disable": True})

    level, hook = logging.get_verbosity(), logging.set_tqdm_hook(no_bar)
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.set_tqdm_hook(hook)
