"""Tests of models in place: the folders of other programs, and changes in them."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from overpaint.errors import CheckpointError, ModelNotFoundError
from overpaint.models.files.digests import compute_sha256
from overpaint.models.files.lora.peft_folder import compute_lora_digests, list_lora_files
from overpaint.models.library.index import LibraryIndex
from overpaint.models.library.library import Library
from tests.models.library.test_library import lora, peft_folder

COMFYUI_PATHS = """
# a comment
a111:
    base_path: {base}
    checkpoints: models/Stable-diffusion
    loras: |
         models/Lora
         models/LyCORIS
    embeddings: embeddings
other:
    loras: beside
    is_default: true
"""


def place(root: Path, *names: str) -> None:
    """Write a different LoRA at each path."""
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        lora(root / name, seed)


def names_in(tmp_path: Path, *folders: Path) -> list[str]:
    return [entry.name for entry in LibraryIndex(tmp_path / "home", folders).list_entries()]


def test_layout_of_a1111_is_read(tmp_path: Path) -> None:
    root = tmp_path / "webui"
    place(root, "models/Lora/ink.safetensors", "models/Lora/styles/pen.safetensors")
    place(root, "outputs/no.safetensors", "extensions/sd-webui-controlnet/models/net.safetensors")
    (root / "embeddings").mkdir()
    save_file({"word": torch.ones(2, 8)}, root / "embeddings" / "bad hands.safetensors")
    save_file({"decoder.x": torch.ones(2, 8)}, root / "models" / "vae.safetensors")
    (root / "models" / "Lora" / "old.pt").write_bytes(b"PK")
    (root / "models" / "Lora" / "cut.safetensors").write_bytes(b"12345")
    entries = LibraryIndex(tmp_path / "home", [root]).list_entries()
    assert [(e.name, e.kind) for e in entries] == [
        ("bad hands", "embedding"),
        ("ink", "lora"),
        ("net", "lora"),
        ("pen", "lora"),
    ]


def test_layout_of_comfyui_with_extra_paths_is_read(tmp_path: Path) -> None:
    root, webui = tmp_path / "ComfyUI", tmp_path / "webui"
    place(root, "models/loras/ink.safetensors", "beside/near.safetensors")
    place(webui, "models/Lora/pen.safetensors", "models/LyCORIS/oil.safetensors")
    (root / "extra_model_paths.yaml").write_text(COMFYUI_PATHS.format(base=webui))
    assert names_in(tmp_path, root) == ["ink", "near", "oil", "pen"]
    assert names_in(tmp_path, root / "extra_model_paths.yaml") == ["near", "oil", "pen"]


@pytest.mark.parametrize(
    "header",
    [
        '{"a": {"shape": [1e400]}}',
        '{"a": {"shape": [NaN]}}',
        '{"a": 5}',
        '{"__metadata__": {"modelspec.license": "\\ud800"}, "lora_unet_x.lora_up.weight": '
        '{"shape": [2, 2]}}',
    ],
)
def test_one_damaged_header_leaves_the_other_files_listed(header: str, tmp_path: Path) -> None:
    root = tmp_path / "loras"
    place(root, "ink.safetensors")
    (root / "bad.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode())
    assert names_in(tmp_path, root) == ["ink"]
    with pytest.raises(CheckpointError):
        Library(tmp_path / "home", paths=True).find(str(root / "bad.safetensors"))


@pytest.mark.parametrize("text", ["a: [", "- 1", "a"])
def test_unreadable_extra_paths_are_rejected(text: str, tmp_path: Path) -> None:
    (tmp_path / "extra_model_paths.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"extra_model_paths\.yaml"):
        LibraryIndex(tmp_path / "home", [tmp_path / "extra_model_paths.yaml"])


def test_missing_folder_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="There is no folder of models"):
        LibraryIndex(tmp_path / "home", [tmp_path / "none"])


def test_files_are_noticed_while_the_program_runs(tmp_path: Path) -> None:
    root = tmp_path / "loras"
    root.mkdir()
    library = Library(tmp_path / "home", [root])
    with pytest.raises(ModelNotFoundError, match="Unknown lora 'ink'"):
        library.find("ink", "lora")
    place(root, "ink.safetensors")
    before = library.find("ink", "lora")
    assert before.path == root / "ink.safetensors"
    assert not library.folder.exists()  # nothing was copied
    lora(root / "ink.safetensors", 5, {"ss_output_name": "other"})
    after = library.find("ink", "lora")
    assert after.sha256 != before.sha256
    assert after.metadata["ss_output_name"] == "other"
    (root / "ink.safetensors").unlink()
    assert library.resolve("ink", "lora") is None


def test_lora_in_place_is_found_by_place_title_and_hash(tmp_path: Path) -> None:
    root = tmp_path / "loras"
    place(root, "a/ink.safetensors", "b/ink.safetensors", "b/my pen [v2].safetensors")
    library = Library(tmp_path / "home", [root])
    assert [entry.name for entry in library.list_entries()] == ["a/ink", "b/ink", "my pen [v2]"]
    for name in ("b/ink", "b\\ink.safetensors", "B/INK"):
        assert library.find(name, "lora").path == root / "b" / "ink.safetensors"
    with pytest.raises(ModelNotFoundError, match="'ink' fits several files: a/ink, b/ink"):
        library.find("ink", "lora")
    pen = library.find("my pen [v2]", "lora")
    assert library.find(pen.sha256[:10], "lora") == pen
    assert pen.tensors_sha256
    assert library.find(pen.tensors_sha256[:12], "lora") == pen
    with pytest.raises(ModelNotFoundError, match="Unknown lora"):
        library.find("../loras/a/ink", "lora")
    with pytest.raises(CheckpointError, match="is in a folder of models and cannot be removed"):
        library.remove("a/ink")


def test_added_name_counts_before_one_in_place(tmp_path: Path) -> None:
    root = tmp_path / "loras"
    place(root, "ink.safetensors")
    library = Library(tmp_path / "home", [root])
    added = library.add(lora(tmp_path / "other.safetensors", 7), "ink")
    assert library.find("ink", "lora") == added
    assert [entry.path for entry in library.list_entries()] == [added.path]


def test_peft_and_diffusers_folders_in_place_are_one_entry_each(tmp_path: Path) -> None:
    root = tmp_path / "models"
    peft_folder(root / "ink")
    (root / "sdxl" / "unet").mkdir(parents=True)
    (root / "sdxl" / "model_index.json").write_text("{}")
    save_file({"x": torch.ones(1)}, root / "sdxl" / "unet" / "model.safetensors")
    library = Library(tmp_path / "home", [root])
    found = {entry.name: (entry.kind, entry.path) for entry in library.list_entries()}
    assert found == {"ink": ("lora", root / "ink"), "sdxl": ("checkpoint", root / "sdxl")}
    assert library.find("ink").sha256


def test_loops_of_links_end(tmp_path: Path) -> None:
    root = tmp_path / "loras"
    place(root, "ink.safetensors")
    os.symlink(root, root / "again")
    assert names_in(tmp_path, root) == ["ink"]


def test_names_of_packaged_models_and_aliases_are_not_replaced(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    root.mkdir()
    for name in ("sdxl", "miniature", "mine"):
        save_file({"model.diffusion_model.x": torch.ones(1)}, root / f"{name}.safetensors")
    library = Library(tmp_path / "home", [root])
    assert library.find_if("mine", "checkpoint")
    assert library.find_if("sdxl", "checkpoint") is None
    assert library.find_if("miniature", "checkpoint") is None


def test_copy_of_an_added_file_is_no_second_file(tmp_path: Path) -> None:
    root = tmp_path / "loras"
    root.mkdir()
    path = lora(root / "Ink_v1.safetensors", 0, {"ss_output_name": "Old Ink"})
    library = Library(tmp_path / "home", [root])
    entry = library.add(path, "ink")
    assert library.find("old ink", "lora") == library.find("ink_v1", "lora") == entry


def set_alpha(folder: Path, alpha: float) -> None:
    """Change the strength of a PEFT adapter in its config."""
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": alpha}))


def test_changed_config_of_a_peft_folder_is_another_lora(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "loras" / "ink")
    library = Library(tmp_path / "home", [tmp_path / "loras"])
    before = library.find("ink", "lora")
    set_alpha(folder, 2)  # a number of the same length
    assert library.find("ink", "lora").sha256 != before.sha256
    set_alpha(folder, 8)
    assert library.find("ink", "lora").sha256 == before.sha256


def test_digest_of_a_peft_folder_is_the_one_that_the_loader_computes(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "loras" / "ink")
    peft_folder(folder / "text_encoder", 1)
    entry = Library(tmp_path / "home", [tmp_path / "loras"]).find("ink", "lora")
    files = list_lora_files(folder)
    assert len(files) == 4
    assert entry.sha256 == compute_sha256(files) == compute_lora_digests(folder, {})[0]
    assert entry.keys == 4


def test_changed_weights_in_a_checkpoint_folder_are_noticed(tmp_path: Path) -> None:
    weights = tmp_path / "models" / "sdxl" / "unet" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    (tmp_path / "models" / "sdxl" / "model_index.json").write_text("{}")
    save_file({"x": torch.ones(1)}, weights)
    library = Library(tmp_path / "home", [tmp_path / "models"])
    before = library.find("sdxl")
    save_file({"x": torch.zeros(1)}, weights)
    assert library.find("sdxl").sha256 != before.sha256


def test_file_with_the_time_and_size_of_its_predecessor_is_noticed(tmp_path: Path) -> None:
    root = tmp_path / "loras"
    place(root, "ink.safetensors")
    library = Library(tmp_path / "home", [root])
    before, status = library.find("ink", "lora"), (root / "ink.safetensors").stat()
    lora(root / "ink.safetensors", 5)
    os.utime(root / "ink.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert library.find("ink", "lora").sha256 != before.sha256


def test_look_up_in_unchanged_folders_makes_nothing_again(tmp_path: Path) -> None:
    root = tmp_path / "loras"
    place(root, "ink.safetensors", "pen.safetensors")
    library = Library(tmp_path / "home", [root])
    library.add(lora(tmp_path / "oil.safetensors", 5))
    first, in_place = library.list_entries(), library.in_place.list_entries()
    assert library.resolve("PEN", "lora") is first[2]
    assert all(a is b for a, b in zip(first, library.list_entries(), strict=True))
    assert library.in_place.list_entries() is in_place
    lora(root / "pen.safetensors", 7)
    after = library.list_entries()
    assert [a is b for a, b in zip(first, after, strict=True)] == [True, True, False]
    library.remove("oil")
    assert [entry.name for entry in library.list_entries()] == ["ink", "pen"]


def test_look_up_of_a_checkpoint_does_not_read_its_weights(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    root.mkdir()
    save_file({"model.diffusion_model.x": torch.ones(1)}, root / "mine.safetensors")
    library = Library(tmp_path / "home", [root])
    entry = library.find_if("mine", "checkpoint")
    assert entry is library.in_place.list_entries()[0]
    assert entry
    assert not entry.sha256
    assert library.find("mine").sha256
