"""Random estimators in the folder format of transformers."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.tiny import tiny_tokenizer

library: Any = transformers

NORMALIZED: dict[str, Any] = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "rescale_factor": 1 / 255,
}
PROCESSORS: dict[str, dict[str, Any]] = {
    "depth_anything": {
        "image_processor_type": "DPTImageProcessor",
        "ensure_multiple_of": 14,
        "keep_aspect_ratio": True,
        "resample": 3,
        "size": {"height": 56, "width": 56},
    },
    "dpt": {
        "image_processor_type": "DPTImageProcessor",
        "resample": 2,
        "size": {"height": 64, "width": 64},
    },
    "zoedepth": {
        "image_processor_type": "ZoeDepthImageProcessor",
        "do_pad": True,
        "ensure_multiple_of": 32,
        "keep_aspect_ratio": True,
        "resample": 2,
        "size": {"height": 64, "width": 96},
    },
    "upernet": {
        "feature_extractor_type": "SegformerFeatureExtractor",
        "image_processor_type": "SegformerImageProcessor",
        "do_reduce_labels": False,
        "resample": 2,
        "size": {"height": 64, "width": 64},
    },
    "oneformer": {
        "image_processor_type": "OneFormerImageProcessor",
        "class_info_file": "ade20k_panoptic.json",
        "repo_path": "shi-labs/oneformer_demo",
        "ignore_index": 255,
        "num_text": 10,
        "resample": 2,
        "size": {"shortest_edge": 64, "longest_edge": 256},
    },
}
"""Processor configs of published estimators, for smaller pictures."""

STAGES = ["stage1", "stage2", "stage3", "stage4"]
VIT: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
DENSE: dict[str, Any] = {"neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16}


def tiny_estimator(family: str, seed: int = 3, **fields: Any) -> Any:
    """Make a random estimator.

    Args:
        family: The `model_type`.
        seed: The seed of its weights.
        fields: Config keys to override.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: Any = MAKERS[family](**fields)
        for parameter in module.parameters():  # livelier than trained ones begin
            if parameter.ndim > 1:
                parameter.data.mul_(6)
    return module.eval().requires_grad_(False)


def _depth_anything(**fields: Any) -> Any:
    backbone = library.Dinov2Config(
        **VIT, patch_size=14, image_size=56, out_indices=[1, 2, 3, 4], reshape_hidden_states=False
    )
    own = {"reassemble_hidden_size": 32, "head_hidden_size": 8} | DENSE | fields
    return library.DepthAnythingForDepthEstimation(
        library.DepthAnythingConfig(backbone_config=backbone, patch_size=14, **own)
    )


def _dpt(**fields: Any) -> Any:
    own = {"backbone_out_indices": [0, 1, 2, 3], "is_hybrid": False, **VIT, **DENSE, **fields}
    return library.DPTForDepthEstimation(
        library.DPTConfig(intermediate_size=64, image_size=64, patch_size=16, **own)
    )


def _zoedepth(**fields: Any) -> Any:
    backbone = library.BeitConfig(
        **VIT,
        intermediate_size=64,
        image_size=64,
        patch_size=16,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        use_relative_position_bias=True,
    )
    bins = {"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"}
    own: dict[str, Any] = {
        "bottleneck_features": 16,
        "num_relative_features": 8,
        "bin_embedding_dim": 16,
        "num_attractors": [4, 4, 2, 1],
        "bin_configurations": [bins],
    }
    return library.ZoeDepthForDepthEstimation(
        library.ZoeDepthConfig(backbone_config=backbone, **(own | DENSE | fields))
    )


def _upernet(**fields: Any) -> Any:
    backbone = library.ConvNextConfig(
        hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], out_features=STAGES
    )
    own = {"hidden_size": 16, "auxiliary_in_channels": 16, "auxiliary_channels": 8}
    labels: dict[str, Any] = {"num_labels": 150}
    return library.UperNetForSemanticSegmentation(
        library.UperNetConfig(backbone_config=backbone, **(own | labels | fields))
    )


def _oneformer(**fields: Any) -> Any:
    backbone = library.SwinConfig(
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[2, 2, 2, 2],
        window_size=4,
        image_size=64,
        out_features=STAGES,
    )
    widths = ("hidden_dim", "mask_dim", "conv_dim", "encoder_feedforward_dim", "dim_feedforward")
    own: dict[str, Any] = dict.fromkeys(widths, 32) | {
        "num_labels": 150,
        "num_queries": 12,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_attention_heads": 4,
        "text_encoder_width": 64,  # one head
        "text_encoder_num_layers": 1,
        "text_encoder_vocab_size": 600,
        "is_training": True,  # training can leave this value in the config
    }
    return library.OneFormerForUniversalSegmentation(
        library.OneFormerConfig(backbone_config=backbone, **(own | fields))
    )


MAKERS: dict[str, Any] = {
    "depth_anything": _depth_anything,
    "dpt": _dpt,
    "zoedepth": _zoedepth,
    "upernet": _upernet,
    "oneformer": _oneformer,
}


def write_estimator(module: Any, path: Path) -> Path:
    """Write an estimator's folder: config, processor config, safetensors and tokenizer."""
    family = str(module.config.model_type)
    module.save_pretrained(path)
    settings = NORMALIZED | PROCESSORS[family]
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    if family == "oneformer":
        tiny_tokenizer().save_pretrained(str(path))
    return path
