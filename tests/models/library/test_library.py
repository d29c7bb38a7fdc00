"""Tests of the library: added files are found by name, and adding is atomic."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from overpaint.errors import CheckpointError, ModelNotFoundError
from overpaint.models.family import FAMILIES, Configs
from overpaint.models.files import single_file
from overpaint.models.files.digests import compute_sha256
from overpaint.models.library.describe import describe, read_header
from overpaint.models.library.library import Library, list_shipped
from overpaint.models.library.sources import list_sources
from overpaint.painter import load
from overpaint.request import Request
from tests.models.original import (
    build,
    original_layout,
    tiny_configs,
    write_safetensors,
)
from tests.tiny_control import tiny_net, write

KEY = "lora_unet_mid_block_attentions_0_proj_in"


def lora(path: Path, seed: int = 0, metadata: dict[str, str] | None = None) -> Path:
    torch.manual_seed(seed)
    state = {
        f"{KEY}.lora_down.weight": torch.randn(4, 8),
        f"{KEY}.lora_up.weight": torch.randn(8, 4),
    }
    save_file(state, path, metadata)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Library:
    return Library(tmp_path / "home")


def test_added_lora_is_described(store: Library, tmp_path: Path) -> None:
    tags = json.dumps({"10_ink": {"ink": 12, "boat": 3}, "5_more": {"ink ": 2}})
    metadata = {"ss_tag_frequency": tags, "modelspec.license": "MIT"}
    path = lora(tmp_path / "ink.safetensors", 0, metadata)
    entry = store.add(path)
    assert (entry.name, entry.kind, entry.rank, entry.keys) == ("ink", "lora", 4, 2)
    assert entry.trigger_words == ("ink",)
    assert entry.license == "MIT"
    assert entry.path.read_bytes() == path.read_bytes()
    assert entry.sha256 == entry.path.stem
    assert store.find("ink", "lora") == entry
    assert store.list_entries() == [entry]


def test_added_controlnet_and_embedding_are_recognized(store: Library, tmp_path: Path) -> None:
    net = store.add(write(tiny_net("small"), tmp_path / "net.safetensors"), license="Apache-2.0")
    assert (net.kind, net.license) == ("control", "Apache-2.0")
    save_file({"clip_l": torch.ones(2, 8), "clip_g": torch.ones(2, 8)}, tmp_path / "e.safetensors")
    assert store.add(tmp_path / "e.safetensors").kind == "embedding"
    with pytest.raises(ModelNotFoundError, match="Unknown lora 'net'"):
        store.find("net", "lora")


def test_two_names_share_file_until_both_are_removed(store: Library, tmp_path: Path) -> None:
    path = lora(tmp_path / "ink.safetensors")
    first, second = store.add(path), store.add(path, "pen")
    assert first.path == second.path
    store.remove("ink")
    assert second.path.is_file()
    store.remove("pen")
    assert list(store.folder.iterdir()) == []


def test_add_twice_keeps_one_entry_and_other_file_is_rejected(
    store: Library, tmp_path: Path
) -> None:
    path = lora(tmp_path / "ink.safetensors")
    assert store.add(path) == store.add(path)
    with pytest.raises(
        CheckpointError, match=r"The name 'ink' belongs to ink\.safetensors already"
    ):
        store.add(lora(tmp_path / "other.safetensors", 1), "ink")
    assert len(store.list_entries()) == 1


@pytest.mark.parametrize(
    "name", ["", "../ink", "a/b", ".ink", " a", "x" * 101, "ink\n", "a:b", "<a>", "a\\b"]
)
def test_invalid_name_is_rejected(name: str, store: Library, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a valid name"):
        store.add(lora(tmp_path / "ink.safetensors"), name)
    with pytest.raises(ModelNotFoundError, match="Unknown file"):
        store.find(name)
    assert not store.folder.exists()


def test_path_is_rejected_as_lora_name(store: Library, tmp_path: Path) -> None:
    path = lora(tmp_path / "ink.safetensors")
    store.add(path)
    with pytest.raises(ModelNotFoundError, match="Names lead to the catalog alone"):
        store.find(str(path), "lora")
    with pytest.raises(ModelNotFoundError, match="Did you mean ink"):
        store.find("inc", "lora")


def test_unsupported_file_is_rejected(store: Library, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match="pickle"):
        store.add(tmp_path / "a.pt")
    save_file({"something": torch.ones(2)}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="neither a LoRA nor a ControlNet"):
        store.add(tmp_path / "b.safetensors")
    (tmp_path / "c.safetensors").write_bytes(lora(tmp_path / "d.safetensors").read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        store.add(tmp_path / "c.safetensors")
    with pytest.raises(ModelNotFoundError, match="There is no file"):
        store.add(tmp_path / "none.safetensors")
    assert store.list_entries() == []


def test_entry_with_old_spelling_of_license_is_read(store: Library, tmp_path: Path) -> None:
    entry = store.add(lora(tmp_path / "ink.safetensors"), license="MIT")
    path = store.folder / "ink.json"
    path.write_text(path.read_text("utf-8").replace('"license"', '"licence"'), "utf-8")
    assert '"licence"' in path.read_text("utf-8")
    assert store.find("ink") == entry


def test_damaged_entry_is_named_in_error(store: Library, tmp_path: Path) -> None:
    store.add(lora(tmp_path / "ink.safetensors"))
    (store.folder / "ink.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"of 'ink' .* cannot be read") as error:
        store.find("ink")
    assert str(tmp_path) not in str(error.value)
    assert store.list_entries() == []


@pytest.mark.parametrize("name", ["package", "a b", "-x", ".hidden"])
@pytest.mark.parametrize("content", ["{}", "[", "\xff", '{"name": "other"}'])
def test_files_of_other_programs_are_not_listed(store: Library, name: str, content: str) -> None:
    store.folder.mkdir(parents=True)
    (store.folder / f"{name}.json").write_text(content, "latin-1")
    (store.folder / "folder.json").mkdir()
    assert store.list_entries() == []
    with pytest.raises(ModelNotFoundError, match="Unknown lora 'nothing'"):
        store.require("nothing", "lora")


def test_entry_whose_hash_is_a_path_is_refused(store: Library, tmp_path: Path) -> None:
    entry = store.add(lora(tmp_path / "ink.safetensors"))
    path = store.folder / "ink.json"
    path.write_text(path.read_text("utf-8").replace(entry.sha256, "../../secret"), "utf-8")
    with pytest.raises(CheckpointError, match="'ink'"):
        store.find("ink")


def with_folders(value: object) -> dict[str, str]:
    return {"ss_tag_frequency": json.dumps(value)}


@pytest.mark.parametrize(
    "metadata",
    [
        *map(with_folders, ([], 5, None, "a", {"a": []}, {"a": 5}, {"a": {"b": "c"}})),
        *map(with_folders, ({"a": {"b": None}}, {"a": {"b": [1]}}, {"a": {"b": {"c": 1}}})),
        {"ss_tag_frequency": "[" * 100_000},
        {"ss_tag_frequency": "NaN"},
    ],
)
def test_metadata_of_another_shape_gives_no_trigger_words(
    store: Library, tmp_path: Path, metadata: dict[str, str]
) -> None:
    assert store.add(lora(tmp_path / "ink.safetensors", metadata=metadata)).trigger_words == ()


def test_trigger_words_are_few_and_short(store: Library, tmp_path: Path) -> None:
    metadata = with_folders({"a": {f"{number} {'x' * 5000}": 1 for number in range(100)}})
    words = store.add(lora(tmp_path / "ink.safetensors", metadata=metadata)).trigger_words
    assert len(words) == 20
    assert max(map(len, words)) == 1000


@pytest.mark.parametrize("shape", [(), (1,) * 9, (1,) * 100_000])
def test_lora_whose_tensors_have_other_axes_is_refused_or_described(
    store: Library, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    path = tmp_path / "ink.safetensors"
    write_header(path, {f"{KEY}.lora_down.weight": shape, f"{KEY}.lora_up.weight": shape})
    if shape:
        with pytest.raises(CheckpointError, match=f"lora_down.weight has {len(shape):,} axes"):
            store.add(path)
    else:
        assert store.add(path).rank is None


def write_header(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write a file of float32 tensors that have one number each."""
    header = {
        key: {"dtype": "F32", "shape": list(shape), "data_offsets": [4 * i, 4 * i + 4]}
        for i, (key, shape) in enumerate(shapes.items())
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4 * len(shapes)))


def test_packaged_addon_is_found_and_cannot_be_removed(
    store: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = lora(tmp_path / "ink.safetensors")
    license = FAMILIES["miniature"].license
    entry = describe(read_header(path), "miniature-ink", compute_sha256((path,)), license)

    def packaged(kind: str) -> dict[str, Path]:
        return {"miniature-ink": path} if kind == "lora" else {}

    monkeypatch.setattr("overpaint.models.library.index.list_packaged", packaged)
    assert list_shipped() == (entry,)
    assert store.find("miniature-ink", "lora") == entry
    assert store.list_entries() == []
    with pytest.raises(ModelNotFoundError, match=r"Unknown lora 'miniature-in'.*miniature-ink"):
        store.find("miniature-in", "lora")
    with pytest.raises(CheckpointError, match="is part of Overpaint and cannot be removed"):
        store.remove("miniature-ink")
    other = lora(tmp_path / "other.safetensors", 1)
    with pytest.raises(
        CheckpointError, match=r"The name 'miniature-ink' belongs to ink.safetensors already"
    ):
        store.add(other, "miniature-ink")
    assert path.is_file()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SDXL in its original layout."""
    torch.manual_seed(0)
    configs = tiny_configs()
    tensors = original_layout(configs, build(configs))
    path = tmp_path_factory.mktemp("checkpoint") / "my.safetensors"
    return write_safetensors(path, tensors, torch.float32)


def test_added_checkpoint_loads_by_name(
    store: Library, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entry = store.add(checkpoint, "mine")
    assert entry.kind == "checkpoint"

    def tiny(name: str) -> Configs:
        assert name == "sdxl"
        return tiny_configs()

    monkeypatch.setattr(single_file, "shipped_configs", tiny)
    monkeypatch.setitem(single_file.SHIPPED_CONFIGS, (16, 4), "sdxl")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()  # a folder of the same name is not looked at
    painter = load("mine", device="cpu", dtype="fp32", home=store.folder.parent)
    assert (painter.model.name, painter.model.sha256) == ("mine", entry.sha256)
    refiner = painter.addon_loader.load(Request(refiner="mine")).refiner
    assert refiner
    assert refiner.sha256 == entry.sha256
    with pytest.raises(ModelNotFoundError, match="Unknown model 'yours'"):
        load("yours", home=store.folder.parent)


def test_checkpoint_names_exclude_aliases_and_other_kinds(
    store: Library, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="The name 'sdxl' belongs to another model"):
        store.add(checkpoint, "sdxl")
    store.add(lora(tmp_path / "ink.safetensors"))
    store.add(checkpoint)
    assert store.find_if("my", "checkpoint") == store.find("my")
    for name in ("ink", "none", "../models/my", str(store.find("my").path)):
        assert store.find_if(name, "checkpoint") is None


# Names, and files of other programs


@pytest.mark.parametrize(
    "name", ["my ink v2", "ink [v2] (final)", "墨の線", "ink, pen & co.", "ink.v1"]
)
def test_lora_with_an_odd_name_is_found(name: str, store: Library, tmp_path: Path) -> None:
    entry = store.add(lora(tmp_path / f"{name}.safetensors"))
    assert entry.name == name
    assert store.find(name, "lora") == entry
    assert [own.name for own in store.list_entries()] == [name]
    store.remove(name)
    assert list(store.folder.iterdir()) == []


def test_lora_is_found_by_file_title_and_hash(store: Library, tmp_path: Path) -> None:
    path = lora(tmp_path / "Ink_v1.safetensors", 0, {"ss_output_name": "Old Ink"})
    entry = store.add(path, "ink")
    tensors = entry.tensors_sha256
    assert tensors
    for name in ("Ink_v1", "ink_v1.safetensors", "INK", "old ink", entry.sha256[:10], tensors[:12]):
        assert store.find(name, "lora") == entry, name
        store.require(name, "lora")
    store.add(lora(tmp_path / "b.safetensors", 1, {"ss_output_name": "Old Ink"}))
    with pytest.raises(ModelNotFoundError, match="'old ink' fits several files: b, ink"):
        store.find("old ink", "lora")


@pytest.mark.parametrize(
    "key",
    [
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight",
        "unet.mid_block.attentions.0.proj_in.lora.down.weight",
        "lora_unet.mid_block.attentions.0.proj_in.lora_down.weight",
        "lora_unet_mid_block_attentions_0_norm.w_norm",
        "lora_unet_mid_block_attentions_0_proj_in.diff",
        "lora_unet_mid_block_attentions_0_proj_in.oft_blocks",
        "lora_unet_mid_block_attentions_0_proj_in.a1.weight",
        "lora_unet_mid_block_attentions_0_proj_in.on_input",
        "base_model.model.mid_block.attentions.0.proj_in.lora_A.weight",
    ],
)
def test_lora_with_keys_of_any_trainer_is_added(key: str, store: Library, tmp_path: Path) -> None:
    save_file({key: torch.ones(4, 8)}, tmp_path / "ink.safetensors")
    assert store.add(tmp_path / "ink.safetensors").kind == "lora"


def test_unsupported_adapter_is_rejected_by_name(store: Library, tmp_path: Path) -> None:
    save_file({"base_model.model.a.vera_lambda_d": torch.ones(4)}, tmp_path / "ink.safetensors")
    with pytest.raises(CheckpointError, match="is a VeRA adapter, which Overpaint cannot read"):
        store.add(tmp_path / "ink.safetensors")


def peft_folder(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    stem = "base_model.model.mid_block.attentions.0.proj_in"
    state = {f"{stem}.lora_A.weight": torch.randn(4, 8), f"{stem}.lora_B.weight": torch.randn(8, 4)}
    save_file(state, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "lora_alpha": 8,
        "r": 4,
        "auto_mapping": {"base_model_class": "UNet2DConditionModel"},
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_peft_folder_is_added_as_one_file(store: Library, tmp_path: Path) -> None:
    entry = store.add(peft_folder(tmp_path / "my ink"))
    assert (entry.name, entry.kind, entry.rank) == ("my ink", "lora", 4)
    assert json.loads(entry.metadata["lora_adapter_metadata"])["unet.lora_alpha"] == 8
    assert entry.path.is_file()
    assert entry.sha256 == entry.path.stem
    assert store.add(tmp_path / "my ink") == entry
    assert {path.suffix for path in store.folder.iterdir()} == {".safetensors", ".json"}


def test_folder_stands_for_its_files(tmp_path: Path) -> None:
    one = lora(tmp_path / "a.safetensors")
    (tmp_path / "sub").mkdir()
    two = lora(tmp_path / "sub" / "b.safetensors")
    peft = peft_folder(tmp_path / "sub" / "peft")
    (tmp_path / "notes.txt").write_text("x")
    assert list_sources([tmp_path]) == [one, two, peft]
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty has no \.safetensors"):
        list_sources([tmp_path / "empty"])


def test_strange_files_in_the_library_are_left_out(store: Library, tmp_path: Path) -> None:
    store.add(lora(tmp_path / "ink.safetensors"))
    described = json.loads((store.folder / "ink.json").read_text("utf-8"))
    (store.folder / "x.json").write_text("{}")
    (store.folder / "y.json").write_text(json.dumps(described | {"name": "z"}))
    (store.folder / "z.json").write_text(json.dumps(described | {"name": "z", "sha256": "../a"}))
    assert [entry.name for entry in store.list_entries()] == ["ink"]


def test_path_is_a_name_only_where_paths_are_allowed(store: Library, tmp_path: Path) -> None:
    path = lora(tmp_path / "ink.safetensors")
    library = Library(store.folder.parent, paths=True)
    entry = library.find(str(path), "lora")
    assert (entry.path, entry.kind, entry.sha256) == (path, "lora", compute_sha256((path,)))
    with pytest.raises(ModelNotFoundError, match="is a lora, not a control"):
        library.find(str(path), "control")
    with pytest.raises(ModelNotFoundError, match="Names lead to the catalog alone"):
        store.find(str(path), "lora")
