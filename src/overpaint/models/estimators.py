"""Networks that see in a picture what a hint shows: how near things are, or what they are.

A folder as transformers writes it: `config.json`, `preprocessor_config.json`, safetensors.

| `model_type` | published as | sees |
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
from overpaint.registry import Sight

ESTIMATOR_CLASSES: dict[str, tuple[str, Sight]] = {
    "depth_anything": ("DepthAnythingForDepthEstimation", "depth"),
    "dpt": ("DPTForDepthEstimation", "depth"),
    "zoedepth": ("ZoeDepthForDepthEstimation", "depth"),
    "upernet": ("UperNetForSemanticSegmentation", "classes"),
    # Not OneFormerForUniversalSegmentation, which adds its loss alone, and needs scipy for it.
    "oneformer": ("OneFormerModel", "classes"),
}
"""`model_type`: transformers' class, and what it sees."""

DEFAULT_PROCESSORS = {
    "depth_anything": "DPTImageProcessor",
    "dpt": "DPTImageProcessor",
    "zoedepth": "ZoeDepthImageProcessor",
    "upernet": "SegformerImageProcessor",
    "oneformer": "OneFormerImageProcessor",
}
"""What makes a family's inputs where its folder does not say."""

UNUSED_PARAMETERS = re.compile(r"neck\.fusion_stage\.layers\.0\.residual_layer1\.")
"""Parameters that no forward pass reads, and many files lack."""

TRAINING_KEYS = re.compile(r"criterion\.|(model\.)?text_mapper\.|.*\.relative_position_index$")
"""Tensors that a file may hold without need: of OneFormer's loss, and indices that are computed."""

MIN_DISTANCE_M = 0.1
"""Metres below which a metric estimate counts as this near: one speck may not take all greys."""


@dataclass(frozen=True, eq=False)
class Estimator:
    """A network that sees, on a device.

    Attributes:
        name: as the user gave it.
        sha256: of its weights.
        sight: what it sees.
        module: in eval mode, without gradients.
        processor: transformers' own, for its inputs.
        metric: it estimates metres of distance, not how near things are.
        border: by how much its inputs are padded on each side: so often √(side / 2) pixels.
        task: OneFormer's tokens [1, 77] of what it is to do; None for others.
        unused: keys of its file that belong nowhere.
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
        """What is in an RGB picture.

        Returns:
            [h, w], of the picture's size. Depth: float32, larger is nearer. MiDaS, DPT and Depth
            Anything estimate the inverse of the distance, up to a factor and an offset, and are
            taken as they are; of metric estimates, in metres, the inverse is taken, so that a hint
            shows the same whichever made it. Classes: int64, of ADE20K's 150, from 0.

        Raises:
            DeviceError: what it computed is not finite, or it took too much memory.
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
                    f"what {self.name} computed in {dtype} is not finite; its weights may be "
                    "damaged, or fp16 too narrow: load the model in bf16 or fp32."
                )
            values = self._near(seen, size) if depth else pick_strongest_class(seen, size)
        except torch.OutOfMemoryError as error:
            raise DeviceError(f"{device} ran out of memory for {self.name}: {error}") from error
        return values.cpu().numpy()

    def _near(self, estimate: Tensor, size: tuple[int, int]) -> Tensor:
        """How near each pixel is [h, w], of an estimate [1, H, W]."""
        height, width = size
        down, across = (int(np.sqrt(side / 2) * self.border) for side in size)
        padded = (height + 2 * down, width + 2 * across)
        larger = interpolate(estimate[None], padded, mode="bicubic", align_corners=False)[0, 0]
        found = larger[down : down + height, across : across + width]
        return 1 / found.clamp(min=MIN_DISTANCE_M) if self.metric else found


def score_classes(output: Any) -> Tensor:
    """How much each of the 150 classes is seen at each place, [150, h, w]."""
    if "logits" in output:
        return output.logits[0].float()
    # OneFormer: queries, each with its class (the last is none) and its place.
    named = output.transformer_decoder_class_predictions[0].float().softmax(-1)[:, :-1]
    placed = output.transformer_decoder_mask_predictions[0].float().sigmoid()
    return torch.einsum("qc,qhw->chw", named, placed)


def pick_strongest_class(seen: Tensor, size: tuple[int, int]) -> Tensor:
    """The class that is seen most at each pixel [h, w], of scores [classes, H, W].

    They are enlarged one by one: all at once would take as much memory as 150 pictures.
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
    """Load a network that sees.

    Args:
        name: of `catalogue.ESTIMATORS`, a folder, or a hub id.
        sight: what it is to see.
        device: where it goes.
        dtype: of its floating-point tensors; on the CPU they are in fp32.

    Raises:
        ModelNotFoundError: no such name, folder or repository, or the hub is out of reach.
        CheckpointError: of another family, sees something else, a pickle, damaged, or incomplete.
    """
    folder = catalog.resolve_estimator(str(name))
    family = str(read_json_config(folder / "config.json").get("model_type"))
    if family not in ESTIMATOR_CLASSES:
        raise CheckpointError(
            f"{folder} is of model_type {family!r}; estimators that Overpaint knows are "
            f"{', '.join(ESTIMATOR_CLASSES)}"
        )
    kind, sees = ESTIMATOR_CLASSES[family]
    if sees != sight:
        raise CheckpointError(f"{folder}: a {family} sees {sees}; this hint needs {sight}")
    try:
        return _load(str(name), folder, family, getattr(transformers, kind), device, dtype)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a broken config makes the library meet
        raise CheckpointError(f"{folder} cannot be loaded as a {family}: {error}") from error


def _load(
    name: str, folder: Path, family: str, kind: Any, device: torch.device, dtype: torch.dtype
) -> Estimator:
    dtype = torch.float32 if device.type == "cpu" else dtype
    config = kind.config_class.from_dict(read_json_config(folder / "config.json"))
    if ESTIMATOR_CLASSES[family][1] == "classes" and config.num_labels != len(ADE20K_PALETTE):
        raise CheckpointError(
            f"{folder} sees {config.num_labels} classes; hints of segmentation show ADE20K's "
            f"{len(ADE20K_PALETTE)}"
        )
    task = None
    if family == "oneformer":
        config.is_training = False  # or dropout is applied, and text expected
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
        compute_sha256(files),
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
    """The network with all its tensors, and the keys that it does not use.

    By the library's own loader, which knows what tensors were called in its earlier releases.
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
    """The library's own that a folder asks for, over Pillow: its other ones need torchvision.

    Args:
        folder: with a `preprocessor_config.json`.
        default: its name where that file names none.

    Raises:
        CheckpointError: the file is missing, damaged, or asks for what there is not.
    """
    settings = read_json_config(folder / "preprocessor_config.json")
    # Older files call it a feature extractor, others name the variant that wrote them.
    names = (settings.pop(key, None) for key in ("image_processor_type", "feature_extractor_type"))
    asked = next((str(name) for name in names if name), default)
    base = asked.replace("FeatureExtractor", "ImageProcessor")
    name = f"{base.removesuffix('Fast').removesuffix('Pil')}Pil"
    if not name.endswith("ImageProcessorPil") or not hasattr(transformers, name):
        raise CheckpointError(
            f"{folder / 'preprocessor_config.json'} asks for {asked!r}, which transformers "
            f"{transformers.__version__} does not have"
        )
    # OneFormer's would look up the names of its classes, perhaps on the hub, to train with.
    settings.pop("class_info_file", None)
    processor = getattr(transformers, name)(**settings)
    processor(images=[Image.new("RGB", (64, 64))])  # settings that make no sense show here
    return processor


def _tokenize_task(folder: Path, length: int) -> Tensor:
    """The tokens of OneFormer's task, [1, length], zero behind the last."""
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
    """Without the library's own report and bar: what is wrong with a file is raised instead."""

    def no_bar(factory: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        return factory(*args, **{**kwargs, "disable": True})

    level, hook = logging.get_verbosity(), logging.set_tqdm_hook(no_bar)
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.set_tqdm_hook(hook)
