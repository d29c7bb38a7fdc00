import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import overpaint
from overpaint.models.files.clip_vocabulary import load_clip_tokenizer

ROOT = Path(__file__).parents[3]
CLIP = Path(overpaint.__file__).parent / "data" / "clip"
DATA_LIMIT_BYTES = 58 * 10**6


def merges() -> list[str]:
    return (CLIP / "merges.txt").read_text("utf-8").splitlines()[1:]


def ids() -> dict[str, int]:
    return json.loads((CLIP / "vocab.json").read_text("utf-8"))


def byte_letters() -> list[str]:
    """The printable letter for each byte, in the order of CLIP's `simple_tokenizer.py`."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(0x100 + k) for k in range(256 - len(printable))]


def test_vocabulary_tokens_are_in_clip_order() -> None:
    letters = byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += [merge.replace(" ", "") for merge in merges()]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    assert len(tokens) == 49408
    assert ids() == {token: number for number, token in enumerate(tokens)}


def test_vocabulary_merges_are_distinct_pairs() -> None:
    assert len(set(merges())) == len(merges()) == 48894
    assert all(len(merge.split(" ")) == 2 for merge in merges())


@pytest.mark.parametrize(("part", "pad"), [("text_encoder", 49407), ("text_encoder_2", 0)])
def test_tokenizer_pads_as_sdxl_does(part: str, pad: int) -> None:
    tokenizer = load_clip_tokenizer(part)
    assert (tokenizer.pad_token_id, tokenizer.model_max_length) == (pad, 77)
    found = tokenizer("a!", padding="max_length").input_ids
    assert (found[0], found[3], found[-1], len(found)) == (49406, 49407, pad, 77)


def test_tokenizer_gives_known_ids_of_the_real_vocabulary() -> None:
    tokenizer = load_clip_tokenizer("text_encoder")
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_package_data_is_at_most_58_mb() -> None:
    sizes = [path.stat().st_size for path in CLIP.parent.rglob("*") if path.is_file()]
    assert sum(sizes) <= DATA_LIMIT_BYTES


def test_wheel_contains_vocabulary_and_its_license(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for file in ("vocab.json", "merges.txt", "LICENSE"):
            assert archive.read(f"overpaint/data/clip/{file}") == (CLIP / file).read_bytes()
        licenses = [name for name in archive.namelist() if ".dist-info/licenses/" in name]
    names = {name.split("/licenses/")[1] for name in licenses}
    assert {"LICENSE", "src/overpaint/data/clip/LICENSE"} <= names


def test_source_searches_no_other_package_for_the_vocabulary() -> None:
    for path in CLIP.parents[1].rglob("*.py"):
        text = path.read_text("utf-8")
        for name in ("open_clip_torch", '"open_clip"', "import open_clip", "bpe_simple_vocab"):
            assert name not in text, path
