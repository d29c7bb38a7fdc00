"""Write settings as A1111's `parameters` text, and find embeddings in prompts as A1111 does."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overpaint.registry import SAMPLERS, SCHEDULES

MAX_NAME_CHARS = 100
"""Characters of an embedding's name that is looked for in prompts."""


def format_parameters(record: Mapping[str, Any]) -> str:
    """Format a record as A1111 does (modules/processing.py, `create_infotext`)."""
    request, model = record["request"], record["model"]
    pairs = {
        "Steps": request["num_inference_steps"],
        "Sampler": SAMPLERS[request["sampler"]].label,
        "Schedule type": SCHEDULES[request["schedule"]].label,
        "CFG scale": _format_number(request["guidance_scale"]),
        "Seed": record["seed"],
        "Size": "{}x{}".format(*record["size"]),
        "Model hash": model["sha256"][:10],
        "Model": _format_model_name(Path(model["name"])),
    }
    if vae := model.get("parts", {}).get("vae"):
        pairs["VAE hash"] = vae["sha256"][:10]
        pairs["VAE"] = _format_model_name(Path(vae["name"]))
    if request.get("decoder"):
        pairs["VAE Decoder"] = "TAESD"
    if record.get("subseed") is not None:
        pairs["Variation seed"] = record["subseed"]
        pairs["Variation seed strength"] = _format_number(request["subseed_strength"])
    if request["strength"] is not None:
        pairs["Denoising strength"] = _format_number(request["strength"])
    if request["clip_skip"]:
        pairs["Clip skip"] = request["clip_skip"] + 2
    loras = {name: own["tensors"] for name, own in record["loras_sha256"].items()}
    for key, files in {"Lora hashes": loras, "TI hashes": record["embeddings_sha256"]}.items():
        if files:
            pairs[key] = ", ".join(f"{name}: {digest[:12]}" for name, digest in files.items())
    pairs["Version"] = f"overpaint {record['version']}"
    lines = [" ".join([request["prompt"], *map(_format_lora_tag, request["loras"])])]
    if request["negative_prompt"]:
        lines.append(f"Negative prompt: {request['negative_prompt']}")
    lines.append(
        ", ".join(f"{key}: {_quote_a1111_value(str(value))}" for key, value in pairs.items())
    )
    return "\n".join(lines).strip()


def _format_lora_tag(lora: Mapping[str, Any]) -> str:
    """Format a LoRA as a tag in an A1111 prompt."""
    scales = [lora["scale"]] if lora["text_scale"] is None else [lora["text_scale"], lora["scale"]]
    name = re.sub(r"[<>:]", "", _format_model_name(Path(lora["name"])))
    return f"<lora:{':'.join([name, *map(_format_number, scales)])}>"


def _format_model_name(path: Path) -> str:
    """Return the stem of a file, the name of a folder, or a hub id unchanged, as A1111 does."""
    if path.suffix == ".safetensors":
        return path.stem
    return path.name if path.is_absolute() else str(path)


def _quote_a1111_value(value: str) -> str:
    """Quote a value that contains a separator, as A1111 does."""
    return json.dumps(value, ensure_ascii=False) if set(value) & set(",:\n") else value


def _format_number(value: float) -> str:
    return repr(value).removesuffix(".0")


def mark_embeddings(prompt: str, names: Collection[str]) -> str:
    """Replace the bare names of embeddings in a prompt by `<embedding:NAME>`.

    The work depends on the lengths of the prompt and of the longest name, not on the number of
    names: all names are walked together, letter by letter.

    Args:
        prompt: the prompt.
        names: names of embeddings; upper and lower case are the same.
    """
    if not names:
        return prompt
    tree = _make_name_tree(names)
    pieces: list[str] = []
    position = 0
    for start in _NAME_START.finditer(prompt):
        if start.start() >= position and (found := _find_longest(tree, prompt, start.start())):
            name, end = found
            pieces += [prompt[position : start.start()], f"<embedding:{name}>"]
            position = end
    return "".join([*pieces, prompt[position:]])


_NAME_START = re.compile(r"(?<![\w<:-])(?=\S)")
_NAME_END = re.compile(r"(?![\w>-])")


@dataclass
class _NameTree:
    """The names that begin with some letters.

    Attributes:
        next: the names that go on, by their next letter in lower case.
        name: the name that ends here.
    """

    next: dict[str, "_NameTree"] = field(default_factory=dict[str, "_NameTree"])
    name: str | None = None


def _make_name_tree(names: Collection[str]) -> _NameTree:
    tree = _NameTree()
    for name in names:
        place = tree
        for letter in name[:MAX_NAME_CHARS]:
            place = place.next.setdefault(letter.lower(), _NameTree())
        if len(name) <= MAX_NAME_CHARS:
            place.name = name
    return tree


def _find_longest(tree: _NameTree, text: str, start: int) -> tuple[str, int] | None:
    """Return the longest name that begins at a position of a text, and its end."""
    found = None
    place, position = tree, start
    while position < len(text) and (longer := place.next.get(text[position].lower())):
        place, position = longer, position + 1
        if place.name and _NAME_END.match(text, position):
            found = place.name, position
    return found
