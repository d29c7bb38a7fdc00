"""Open a file or folder that the user adds, as one set of tensors.

| source | becomes |
|---|---|
| a safetensors file | the same file |
| a PEFT folder, or a folder with one for each part | one LoRA file, with the config as metadata |
| diffusers' pair `learned_embeds` and `learned_embeds_2` | one embedding file for both encoders |
"""

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file

from overpaint.errors import CheckpointError
from overpaint.models.files.lora.file import open_lora
from overpaint.models.files.lora.keys import strip_brackets
from overpaint.models.files.lora.peft_folder import is_peft_folder
from overpaint.models.files.safetensors_io import WeightsFile, open_weights
from overpaint.models.files.suffixes import WEIGHT_SUFFIXES
from overpaint.models.library.describe import Header
from overpaint.models.library.entry import strip_suffix

PAIR_STEM = "learned_embeds"
"""How diffusers' files with the embedding of one text encoder begin."""


@dataclass(frozen=True)
class Source:
    """A file or folder that the user adds.

    Attributes:
        name: The default name.
        file: The name of the file or folder.
        weights: The tensors and metadata.
        joined: Whether the tensors come from several files, which become one.
    """

    name: str
    file: str
    weights: WeightsFile
    joined: bool = False

    @property
    def header(self) -> Header:
        """The header of the file."""
        shapes = {key: tuple(tensor.shape) for key, tensor in self.weights.tensors.items()}
        return Header(self.weights.path, shapes, self.weights.metadata)

    def write(self, path: Path) -> None:
        """Write the joined tensors as one file."""
        tensors = {key: tensor.read() for key, tensor in self.weights.tensors.items()}
        save_file(tensors, path, self.weights.metadata)


def open_source(path: Path) -> Source:
    """Open a file or folder that the user adds.

    Raises:
        CheckpointError: It is damaged, or a folder without one model.
    """
    if path.is_dir():
        if not is_peft_folder(path):
            raise CheckpointError(
                f"{path} is not a PEFT folder. Give a diffusers folder to --model by its path, "
                "without adding it."
            )
        return Source(path.resolve().name, path.name, open_lora(path), joined=True)
    weights = open_weights(path)
    if not (path.name.startswith(PAIR_STEM) and len(weights.tensors) == 1):
        return Source(strip_suffix(path.name), path.name, weights)
    [token] = weights.tensors
    if (pair := _find_pair(path)) is None:
        return Source(strip_brackets(token), path.name, weights)
    files = [open_weights(own) for own in pair]
    if any(list(own.tensors) != [token] for own in files):
        return Source(strip_brackets(token), path.name, weights)
    tensors = {f"clip_{x}": own.tensors[token] for x, own in zip("lg", files, strict=True)}
    joined = WeightsFile(pair[0], tensors, {"token": token, **files[0].metadata})
    return Source(strip_brackets(token), pair[0].name, joined, joined=True)


def _find_pair(path: Path) -> tuple[Path, Path] | None:
    """Return the files of the first and the second text encoder, or None without a pair."""
    rest = path.name.removeprefix(PAIR_STEM)
    first = path.with_name(PAIR_STEM + rest.removeprefix("_2"))
    second = path.with_name(f"{PAIR_STEM}_2{rest.removeprefix('_2')}")
    return (first, second) if first.is_file() and second.is_file() else None


def list_sources(paths: list[Path]) -> list[Path]:
    """Return the files and PEFT folders to add: a folder stands for all that it holds.

    Of diffusers' pair, only the first file is in the list.

    Raises:
        CheckpointError: A folder holds nothing that can be added.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir() or is_peft_folder(path) or (path / "model_index.json").is_file():
            found.append(path)
            continue
        inside = sorted(
            own
            for own in path.rglob("*")
            if (own.is_dir() and is_peft_folder(own))
            or (own.suffix.lower() in WEIGHT_SUFFIXES and own.is_file())
        )
        folders = [own for own in inside if own.is_dir()]
        inside = [own for own in inside if not any(f in own.parents for f in folders)]
        if not inside:
            raise CheckpointError(f"{path} has no {', '.join(WEIGHT_SUFFIXES)} file")
        found += inside
    pairs = {own: _find_pair(own) for own in found if own.name.startswith(PAIR_STEM)}
    return [
        own
        for own in dict.fromkeys(found)
        if not ((pair := pairs.get(own)) and own == pair[1] and pair[0] in found)
    ]
