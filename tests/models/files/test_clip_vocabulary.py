from pathlib import Path

import pytest

from overpaint.errors import CheckpointError, ModelNotFoundError
from overpaint.models.files import clip_vocabulary
from overpaint.models.files.clip_vocabulary import (
    BPE_FILE,
    GET_IT,
    find_vocabulary,
    read_bpe,
    read_vocabulary,
)
from tests.models.original import write_bpe


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch):
    """No hub, no cache, no package."""
    monkeypatch.setattr(clip_vocabulary, "_hub_folder", lambda *, local: None)  # pyright: ignore[reportUnknownLambdaType]
    monkeypatch.setattr(clip_vocabulary, "PACKAGES", ())


def test_the_tokens_of_a_bpe_file_are_in_clips_order(tmp_path: Path):
    found = read_bpe(write_bpe(tmp_path))
    assert len(found.ids) == 49408
    assert len(found.merges) == 48894
    assert [found.ids[token] for token in ("!", "a", "!</w>", "!!")] == [0, 64, 256, 512]
    assert (found.ids["<|startoftext|>"], found.ids["<|endoftext|>"]) == (49406, 49407)


def test_the_tokenizers_are_sdxls(tmp_path: Path):
    found = read_bpe(write_bpe(tmp_path))
    first, second = found.tokenizer("text_encoder"), found.tokenizer("text_encoder_2")
    assert (first.pad_token_id, second.pad_token_id) == (49407, 0)
    assert first.model_max_length == 77
    ids = first("a!", padding="max_length").input_ids
    assert (ids[0], ids[-1], len(ids)) == (49406, 49407, 77)


def test_beside_the_file(tmp_path: Path, nowhere: None):
    checkpoint = tmp_path / "model.safetensors"
    bpe = write_bpe(tmp_path)
    expected = find_vocabulary(checkpoint)
    tokenizer = expected.tokenizer("text_encoder")
    tokenizer.backend_tokenizer.model.save(str(tmp_path))
    bpe.unlink()
    assert find_vocabulary(checkpoint) == expected
    (tmp_path / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).rename(tmp_path / "tokenizer" / name)
    assert find_vocabulary(checkpoint) == expected


def test_from_a_package(tmp_path: Path, nowhere: None, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "carries_clip"
    write_bpe(package)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(clip_vocabulary, "PACKAGES", ("not_installed", "carries_clip"))
    assert find_vocabulary(Path("elsewhere/model.safetensors")).ids["!"] == 0


def test_nowhere_names_the_one_command(tmp_path: Path, nowhere: None):
    with pytest.raises(ModelNotFoundError, match=GET_IT):
        find_vocabulary(tmp_path / "model.safetensors")


def test_what_is_not_clips_is_refused(tmp_path: Path):
    (tmp_path / BPE_FILE).write_text("no gzip")
    with pytest.raises(CheckpointError, match="not CLIP's BPE file"):
        read_bpe(tmp_path / BPE_FILE)
    (tmp_path / "vocab.json").write_text('{"!": 0}')
    (tmp_path / "merges.txt").write_text("#version\na b\n")
    with pytest.raises(CheckpointError, match="not CLIP's vocabulary"):
        read_vocabulary(tmp_path)
    (tmp_path / "merges.txt").write_text("#version\na b c\n")
    with pytest.raises(CheckpointError, match=r"merges\.txt"):
        read_vocabulary(tmp_path)


def test_known_ids_of_the_real_vocabulary(tmp_path: Path):
    """From the package that `make` installs."""
    tokenizer = find_vocabulary(tmp_path / "model.safetensors").tokenizer("text_encoder")
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
