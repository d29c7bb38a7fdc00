"""Tests of the safety checker: results equal diffusers; invalid folders are rejected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from overpaint.engine.postprocess import PostprocessConfig, open_checker
from overpaint.errors import CheckpointError, ModelNotFoundError
from overpaint.models.estimators import load_processor
from overpaint.models.safety_checker import load_safety_checker

CONCEPTS, CARES = 17, 3
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
PROCESSOR: dict[str, Any] = {  # as it is published, for smaller pictures
    "crop_size": 32,
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 32,
}


def pictures(count: int = 24) -> list[Image.Image]:
    """Make noise pictures of all brightnesses, larger and smaller than the network's input."""
    drawn = np.random.default_rng(5)
    arrays = [drawn.integers(0, 10 * (i + 2), (40 + i, 60, 3)) for i in range(count)]
    return [Image.fromarray(pixels.astype(np.uint8)) for pixels in arrays]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Make a random checker that flags about half of the pictures."""
    home = tmp_path_factory.mktemp("processor")
    (home / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    pixels = load_processor(home, "")(images=pictures(), return_tensors="pt")["pixel_values"]
    config = transformers.CLIPConfig(
        vision_config=TOWER | {"image_size": 32, "patch_size": 8},
        text_config=TOWER,
        projection_dim=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        checker: Any = StableDiffusionSafetyChecker(config)
        for parameter in checker.parameters():
            parameter.data = torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.1)
    checker.eval().requires_grad_(False)
    embeddings = normalize(checker.visual_projection(checker.vision_model(pixels)[1]))
    for name, share in (("concept_embeds", 0.94), ("special_care_embeds", 0.8)):
        similarity = embeddings @ normalize(getattr(checker, name)).T
        getattr(checker, f"{name}_weights").data = similarity.quantile(share, dim=0)
    return checker


@pytest.fixture
def folder(network: Any, tmp_path: Path) -> Path:
    """Write the network under the published keys, with the additional keys of an older release."""
    tensors = {
        key.replace("vision_model.", "vision_model.vision_model.", 1): value.contiguous()
        for key, value in network.state_dict().items()
    }
    tensors["vision_model.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(network.config.to_dict()))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return tmp_path


def test_checker_flags_same_pictures_as_diffusers(network: Any, folder: Path) -> None:
    images = pictures()
    checker = load_safety_checker(folder, "cpu")
    verdicts = checker(images)
    pixels = checker.processor(images=images, return_tensors="pt")["pixel_values"]
    _, reference = network(pixels, [np.zeros(1) for _ in images])
    assert [verdict.flagged for verdict in verdicts] == reference
    assert 4 < sum(reference) < len(images) - 4
    named = {concept for verdict in verdicts for concept in verdict.concepts}
    assert named <= {f"concept {i}" for i in range(CONCEPTS)}
    assert all(bool(verdict.concepts) == verdict.flagged for verdict in verdicts)


def test_special_care_lowers_all_thresholds(network: Any, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    counts = list[int]()
    for threshold in (-2.0, 2.0):  # all pictures call for special care; none does
        tensors["special_care_embeds_weights"] = torch.full((CARES,), threshold)
        save_file(tensors, folder / "model.safetensors")
        seen = load_safety_checker(folder, "cpu")(pictures(200))
        counts.append(sum(len(verdict.concepts) for verdict in seen))
    assert counts[0] > counts[1]


def test_checker_with_current_key_names_loads(network: Any, folder: Path) -> None:
    before = load_safety_checker(folder, "cpu")(pictures())
    save_file(network.state_dict(), folder / "model.safetensors")
    assert load_safety_checker(folder, "cpu")(pictures()) == before


def drop(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["concept_embeds"]
    save_file(tensors, folder / "model.safetensors")


def add(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"text_model.x": torch.zeros(1)}, folder / "model.safetensors")


def pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def rename(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert"}')


def widen(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"projection_dim": 16}))


def unsettle(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (drop, "1 keys are missing: concept_embeds"),
        (add, "1 keys are unknown: text_model.x"),
        (pickle, "only pickles"),
        (rename, "of model_type 'bert'"),
        (widen, "cannot be loaded as a safety checker"),
        (unsettle, "preprocessor_config.json is missing"),
    ],
)
def test_folder_that_is_not_a_checker_is_rejected(folder: Path, harm: Any, why: str) -> None:
    harm(folder)
    with pytest.raises(CheckpointError, match=why):
        load_safety_checker(folder, "cpu")


@pytest.mark.parametrize(("harm", "why"), [(pickle, "no \\*.safetensors"), (unsettle, "no prep")])
def test_server_with_invalid_checker_fails_at_start(folder: Path, harm: Any, why: str) -> None:
    PostprocessConfig(str(folder)).check()
    harm(folder)
    with pytest.raises(CheckpointError, match=why):
        PostprocessConfig(str(folder)).check()


def test_missing_checker_is_rejected() -> None:
    with pytest.raises(ModelNotFoundError, match="neither a folder nor MODULE:FUNCTION"):
        PostprocessConfig("nowhere").check()
    with pytest.raises(ModelNotFoundError, match="No module named 'no_such_module'"):
        open_checker("no_such_module:check")
    with pytest.raises(ModelNotFoundError, match="no_such_function"):
        open_checker("json:no_such_function")


def test_function_works_as_checker(folder: Path) -> None:
    images = pictures(2)
    assert open_checker("tests.server.checkers:everything")(images) == [True, True]
    assert open_checker(str(folder), "cpu")(images) == load_safety_checker(folder, "cpu")(images)
