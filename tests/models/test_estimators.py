"""Tests of estimators: results equal transformers; invalid files are rejected with a reason."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import CLIPTokenizer
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil
from transformers.models.oneformer import processing_oneformer
from transformers.models.oneformer.image_processing_pil_oneformer import OneFormerImageProcessorPil
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil
from transformers.models.zoedepth import image_processing_pil_zoedepth as zoe
from transformers.pipelines.depth_estimation import DepthEstimationPipeline

from overpaint.errors import CheckpointError, DeviceError, ModelNotFoundError
from overpaint.imaging.hints.drawing import draw_depth
from overpaint.models.addons import Addons
from overpaint.models.estimators import (
    ESTIMATOR_CLASSES,
    Estimator,
    load_estimator,
    pick_strongest_class,
)
from overpaint.registry import Sight
from tests.tiny_estimators import MAKERS, tiny_estimator, write_estimator

SIZE = (110, 70)
CPU = torch.device("cpu")
DEPTHS = ("depth_anything", "dpt")


def picture(size: tuple[int, int] = SIZE) -> Image.Image:
    down, across = np.mgrid[: size[1], : size[0]]
    channels = [across * 2, down * 3, (across * down) % 255]
    return Image.fromarray(np.stack(channels, 2).astype(np.uint8))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("estimators")
    return {f: write_estimator(tiny_estimator(f), home / f) for f in MAKERS}


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Estimator:
    family = json.loads((folder / "config.json").read_text())["model_type"]
    return load_estimator(folder, ESTIMATOR_CLASSES[family][1], CPU, dtype)


def settings(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "preprocessor_config.json").read_text())
    own = ("image_processor_type", "feature_extractor_type", "class_info_file", "repo_path")
    return {key: value for key, value in config.items() if key not in own}


def test_every_family_is_tested(folders: dict[str, Path]) -> None:
    assert set(folders) == set(ESTIMATOR_CLASSES)


@pytest.mark.parametrize("family", MAKERS)
def test_estimate_has_picture_size_and_is_deterministic(
    family: str, folders: dict[str, Path]
) -> None:
    estimator = load(folders[family], torch.bfloat16)
    assert estimator.module.dtype == torch.float32  # as on any CPU
    assert not any(p.requires_grad for p in estimator.module.parameters())
    seen = estimator.estimate(picture())
    assert seen.shape == (70, 110)
    assert seen.dtype == (np.int64 if estimator.sight == "classes" else np.float32)
    assert len(np.unique(seen)) > 3
    estimator.estimate(picture((64, 96)))
    np.testing.assert_array_equal(seen, load(folders[family]).estimate(picture()))


def test_digest_of_an_estimator_covers_its_configs(tmp_path: Path) -> None:
    folder = write_estimator(tiny_estimator("dpt"), tmp_path / "dpt")
    before = load(folder).sha256
    config = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(config | {"resample": 3}))
    assert load(folder).sha256 != before


@pytest.mark.parametrize("family", DEPTHS)
def test_depth_equals_transformers_pipeline(family: str, folders: dict[str, Path]) -> None:
    processor: Any = DPTImageProcessorPil(**settings(folders[family]))
    reference: Any = DepthEstimationPipeline(
        model=tiny_estimator(family), image_processor=processor, device="cpu"
    )(picture())
    depth = load(folders[family]).estimate(picture())
    np.testing.assert_allclose(depth, reference["predicted_depth"].numpy(), atol=1e-5)
    drawn, wanted = (
        np.asarray(i, np.int16) for i in (draw_depth(depth).convert("L"), reference["depth"])
    )
    assert np.abs(drawn - wanted).max() <= 1  # the pipeline truncates, Overpaint rounds


TWO_HEADS: dict[str, Any] = {
    "bin_configurations": [
        {"n_bins": 8, "min_depth": 0.001, "max_depth": most, "name": name}
        for name, most in (("nyu", 10.0), ("kitti", 80.0))
    ],
    "num_patch_transformer_layers": 4,
    "patch_transformer_hidden_size": 128,  # as the library has it fixed
    "patch_transformer_intermediate_size": 32,
    "patch_transformer_num_attention_heads": 2,
}
"""Config keys of a ZoeDepth with separate indoor and outdoor heads."""


@pytest.mark.parametrize("fields", [{}, TWO_HEADS], ids=["one head", "two heads"])
def test_zoedepth_removes_padding_and_inverts_distance(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_estimator(tiny_estimator("zoedepth", **fields), tmp_path)

    def resize(values: Tensor, size: list[int], **how: Any) -> Tensor:
        assert how == {"interpolation": "bicubic", "antialias": False}
        return interpolate(values[None], size, mode="bicubic", align_corners=False)[0]

    # The library's own last step needs torchvision for this one function.
    modes = SimpleNamespace(BICUBIC="bicubic")
    functions = SimpleNamespace(resize=resize, InterpolationMode=modes)
    monkeypatch.setattr(zoe, "tvF", functions, raising=False)
    processor: Any = zoe.ZoeDepthImageProcessorPil(**settings(folder))
    inputs = processor(images=[picture()], return_tensors="pt")
    output = tiny_estimator("zoedepth", **fields)(pixel_values=inputs["pixel_values"].float())
    [wanted] = processor.post_process_depth_estimation(output, source_sizes=[(70, 110)])
    depth = load(folder).estimate(picture())
    np.testing.assert_allclose(1 / depth, wanted["predicted_depth"].numpy(), rtol=1e-5)


def test_metric_depth_anything_inverts_distance(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"depth_estimation_type": "metric", "max_depth": 20}
    folder = write_estimator(tiny_estimator("depth_anything", **fields), tmp_path)
    depth = load(folder).estimate(picture())
    processor: Any = DPTImageProcessorPil(**settings(folder))
    reference: Any = DepthEstimationPipeline(
        model=tiny_estimator("depth_anything", **fields), image_processor=processor, device="cpu"
    )(picture())
    metres = reference["predicted_depth"].numpy()
    np.testing.assert_allclose(depth, 1 / metres.clip(0.1), rtol=1e-4)


def test_upernet_classes_equal_transformers(folders: dict[str, Path]) -> None:
    processor: Any = SegformerImageProcessorPil(**settings(folders["upernet"]))
    inputs = processor(images=[picture()], return_tensors="pt")
    output = tiny_estimator("upernet")(pixel_values=inputs["pixel_values"])
    [wanted] = processor.post_process_semantic_segmentation(output, [(70, 110)])
    assert np.array_equal(load(folders["upernet"]).estimate(picture()), wanted.numpy())


def test_oneformer_classes_equal_transformers(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folders["oneformer"]
    images: Any = OneFormerImageProcessorPil(**settings(folder))
    assert images.class_info_file is None

    def init(self: Any, image_processor: Any, tokenizer: Any) -> None:
        self.image_processor, self.tokenizer = image_processor, tokenizer
        self.max_seq_length = self.task_seq_length = 77

    # Its own checks want an image processor that needs torchvision.
    monkeypatch.setattr(processing_oneformer.OneFormerProcessor, "__init__", init)
    processor: Any = processing_oneformer.OneFormerProcessor(
        images, CLIPTokenizer.from_pretrained(folder)
    )
    inputs = processor(images=[picture()], task_inputs=["semantic"], return_tensors="pt")
    estimator = load(folder)
    assert estimator.task is not None
    assert torch.equal(estimator.task, inputs["task_inputs"])
    assert 3 < int((estimator.task > 0).sum()) < 77
    module = tiny_estimator("oneformer")
    for part in module.modules():
        if hasattr(part, "is_training"):
            part.is_training = False
    output = module(
        pixel_values=inputs["pixel_values"],
        pixel_mask=inputs["pixel_mask"],
        task_inputs=inputs["task_inputs"],
    )
    [wanted] = images.post_process_semantic_segmentation(output, [(70, 110)])
    assert np.array_equal(estimator.estimate(picture()), wanted.numpy())


def test_pick_strongest_class_equals_argmax_with_less_memory() -> None:
    seen = torch.randn(5, 7, 9, generator=torch.Generator().manual_seed(1))
    seen[3] = seen[1]  # of equals the first
    larger = interpolate(seen[None], (20, 31), mode="bilinear", align_corners=False)[0]
    assert torch.equal(pick_strongest_class(seen, (20, 31)), larger.argmax(0))


def test_weights_in_shards_and_16_bits_load(folders: dict[str, Path], tmp_path: Path) -> None:
    module = tiny_estimator("dpt")
    write_estimator(module, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    module.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    whole = load(folders["dpt"])
    np.testing.assert_array_equal(load(tmp_path).estimate(picture()), whole.estimate(picture()))
    for path in tmp_path.glob("model-*"):
        path.unlink()
    state = load_file(folders["dpt"] / "model.safetensors")
    save_file({k: v.half() for k, v in state.items()}, tmp_path / "model.fp16.safetensors")
    halved = load(tmp_path)
    assert halved.module.dtype == torch.float32
    np.testing.assert_allclose(halved.estimate(picture()), whole.estimate(picture()), atol=2e-3)


@pytest.mark.parametrize(
    "name", ["DPTFeatureExtractor", "DPTImageProcessorFast", "DPTImageProcessorPil", None]
)
def test_processor_config_of_older_releases_loads(
    name: str | None, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = write_estimator(tiny_estimator("dpt"), tmp_path)
    config = settings(folder) | {"size": 64}  # which was a square
    config |= {} if name is None else {"image_processor_type": name}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    wanted = load(folders["dpt"]).estimate(picture())
    np.testing.assert_array_equal(load(folder).estimate(picture()), wanted)


# Invalid files

Change = Callable[[Path], object]


def change_config(**fields: Any) -> Change:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))

    return change


def change_weights(alter: Callable[[dict[str, Tensor]], object]) -> Change:
    def change(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        alter(state)
        save_file(state, folder / "model.safetensors")

    return change


def remove(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def write(name: str, data: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(data)


def replace_by_pickle(folder: Path) -> None:
    os.rename(folder / "model.safetensors", folder / "pytorch_model.bin")


def remove_weights(start: str) -> Change:
    def alter(state: dict[str, Tensor]) -> None:
        for key in [key for key in state if key.startswith(start)]:
            del state[key]

    return change_weights(alter)


def add_weights(**tensors: Tensor) -> Change:
    return change_weights(lambda state: state.update(tensors))


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        (
            "dpt",
            change_config(model_type="glpn"),
            "model_type 'glpn'; Overpaint supports depth_anything, dpt",
        ),
        ("dpt", remove("config.json"), "config.json is missing"),
        ("dpt", write("config.json", b"{"), "config.json cannot be read"),
        ("dpt", write("config.json", b"[]"), "config.json does not hold a JSON object"),
        ("dpt", change_config(hidden_size="wide"), "cannot be loaded as dpt: .*hidden_size"),
        ("dpt", change_config(neck_hidden_sizes=[8, 8, 8, 8]), "of another shape: neck"),
        ("dpt", remove("preprocessor_config.json"), "preprocessor_config.json is missing"),
        (
            "dpt",
            write("preprocessor_config.json", b'{"size": {"height": -3}}'),
            "cannot be loaded as dpt",
        ),
        ("dpt", remove("model.safetensors"), r"There are no .safetensors weights$"),
        (
            "dpt",
            replace_by_pickle,
            r"only pickles \(pytorch_model.bin\), which can run any program",
        ),
        ("dpt", remove_weights("neck.convs.1"), "missing: neck.convs.1.weight"),
        ("dpt", write("model.safetensors", b"PK\3\4"), "renamed to .safetens"),
        ("dpt", write("model.safetensors", b"x"), "not a whole safetensors"),
        (
            "upernet",
            change_config(id2label={"0": "a", "1": "b"}),
            "estimates 2 classes; .* ADE20K's 150",
        ),
        (
            "oneformer",
            remove("tokenizer.json"),
            "neither vocab.json and merges.txt nor tokenizer.json",
        ),
    ],
)
def test_invalid_folder_is_rejected(
    family: str, change: Change, message: str, tmp_path: Path
) -> None:
    folder = write_estimator(tiny_estimator(family), tmp_path / "folder")
    change(folder)
    sight: Sight = ESTIMATOR_CLASSES[family][1]
    with pytest.raises(CheckpointError, match=message) as raised:
        load_estimator(folder, sight, CPU, torch.float32)
    assert str(folder) in str(raised.value)


def test_code_in_folder_is_never_run(tmp_path: Path) -> None:
    folder = write_estimator(tiny_estimator("dpt"), tmp_path)
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    change_config(auto_map={"AutoModelForDepthEstimation": "own.Model"})(folder)
    asked = {"auto_map": {"AutoImageProcessor": "own.Processor"}, "image_processor_type": "Own"}
    (folder / "preprocessor_config.json").write_text(json.dumps(asked))
    with pytest.raises(CheckpointError, match="asks for 'Own', which transformers"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_estimator_of_wrong_sight_is_rejected(folders: dict[str, Path]) -> None:
    with pytest.raises(
        CheckpointError, match="upernet estimates classes; this control image needs depth"
    ):
        load_estimator(folders["upernet"], "depth", CPU, torch.float32)
    with pytest.raises(
        CheckpointError, match="dpt estimates depth; this control image needs classes"
    ):
        load_estimator(folders["dpt"], "classes", CPU, torch.float32)


def test_unknown_estimator_name_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"Unknown estimator .*Did you mean depth-any"):
        load_estimator("depth-anythin", "depth", CPU, torch.float32)
    with pytest.raises(ModelNotFoundError, match="There is no file or folder"):
        load_estimator(tmp_path / "none", "depth", CPU, torch.float32)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="is not an estimator: it must be a folder with"):
        load_estimator(tmp_path / "model.safetensors", "depth", CPU, torch.float32)


def test_unused_keys_are_listed_and_ignored_keys_are_not(tmp_path: Path) -> None:
    folder = write_estimator(tiny_estimator("dpt"), tmp_path)
    before = load(folder)
    assert before.unused == ()
    remove_weights("neck.fusion_stage.layers.0.residual_layer1")(folder)  # as in Intel's files
    add_weights(more=torch.zeros(2))(folder)
    estimator = load(folder)
    assert "more" in estimator.unused
    [notice] = Addons(estimators=(None, estimator)).notices
    assert notice.endswith("are not used: more.")
    np.testing.assert_array_equal(estimator.estimate(picture()), before.estimate(picture()))


@pytest.mark.parametrize("family", ["depth_anything", "zoedepth", "upernet", "oneformer"])
def test_estimate_that_is_not_finite_raises(family: str, tmp_path: Path) -> None:
    def spoil(state: dict[str, Tensor]) -> None:
        for tensor in state.values():
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)

    folder = write_estimator(tiny_estimator(family), tmp_path)
    change_weights(spoil)(folder)
    with pytest.raises(DeviceError, match="not finite"):
        load(folder).estimate(picture())


def test_flat_estimate_makes_black_control_image() -> None:
    flat: NDArray[np.float32] = np.full((4, 6), 3.5, np.float32)
    assert draw_depth(flat).getextrema() == ((0, 0),) * 3
