"""Read the LoRAs of a ComfyUI graph. A class of loaders is a row of `LORA_LOADERS`."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from overpaint.provenance.importers.collector import SettingsCollector
from overpaint.provenance.importers.comfyui.graph import Graph, is_link

_Loras = Iterator[tuple[Any, Any, Any]]
"""The file, the scale and the scale of the text encoders (None: the same) of LoRAs."""


def _read_lora_loader(inputs: dict[str, Any]) -> _Loras:
    yield inputs.get("lora_name"), inputs.get("strength_model", 1), inputs.get("strength_clip")


def _read_model_only_loader(inputs: dict[str, Any]) -> _Loras:
    yield inputs.get("lora_name"), inputs.get("strength_model", 1), 0


def _read_power_loader(inputs: dict[str, Any]) -> _Loras:
    for value in inputs.values():
        if isinstance(value, dict) and value.get("on", True):
            yield value.get("lora"), value.get("strength", 1), value.get("strengthTwo")


def _read_efficient_loader(inputs: dict[str, Any]) -> _Loras:
    scale = inputs.get("lora_model_strength", 1)
    yield inputs.get("lora_name"), scale, inputs.get("lora_clip_strength")


def _read_stack(inputs: dict[str, Any]) -> _Loras:
    for key, file in inputs.items():
        number = re.fullmatch(r"lora_(?:name_)?(\d+)", key)
        if number and inputs.get(f"switch_{number[1]}", "On") == "On":
            yield (
                file,
                _get_first(inputs, number[1], ("strength", "model_weight", "model_str"), 1),
                _get_first(inputs, number[1], ("clip_weight", "clip_str"), None),
            )


def _get_first(inputs: dict[str, Any], number: str, names: tuple[str, ...], default: Any) -> Any:
    given = (inputs[key] for name in names if (key := f"{name}_{number}") in inputs)
    return next(given, default)


LORA_LOADERS: dict[str, Callable[[dict[str, Any]], _Loras]] = {
    "LoraLoader": _read_lora_loader,
    "LoraLoader|pysssss": _read_lora_loader,
    "LoraLoaderModelOnly": _read_model_only_loader,
    "Power Lora Loader (rgthree)": _read_power_loader,
    "Lora Loader Stack (rgthree)": _read_stack,
    "CR LoRA Stack": _read_stack,
    "LoRA Stacker": _read_stack,
    "Efficient Loader": _read_efficient_loader,
}


MAX_TEXT_CHAINS = 16
"""Text encoders of the prompts whose LoRAs are compared; further ones count as one."""


def add_loras(reading: SettingsCollector, graph: Graph, model: Any, clips: list[Any]) -> None:
    """Add the LoRAs upstream of a model.

    Args:
        reading: receives the LoRAs and the notes.
        graph: its loaders are marked as translated if all their LoRAs are added.
        model: the link to the model.
        clips: the links to the text encoders of the prompts; a LoRA that is upstream of no link
            does not change the text encoders. Other values stand for the encoders of the model.
    """
    sources = list(dict.fromkeys(clip[0] for clip in clips if is_link(clip)))
    groups = [[source] for source in sources[:MAX_TEXT_CHAINS]]
    if others := sources[MAX_TEXT_CHAINS:]:
        groups.append(others)
    text_chains = [{node.id for node in graph.walk_upstream(*group)} for group in groups]
    one_sided = False
    for node in _walk(graph, model):
        read = LORA_LOADERS.get(node.class_type, lambda _: iter(()))
        loras = [tuple(map(graph.read_value, lora)) for lora in read(node.inputs)]
        chains = [node.id in chain for chain in text_chains]
        added = [
            reading.add_lora(file, scale, text_scale if any(chains) or not chains else 0)
            for file, scale, text_scale in loras
            if file not in (None, "None")
        ]
        if added and all(added):
            graph.translated.add(node.id)
        one_sided |= bool(added) and any(chains) and not all(chains)
    if one_sided:
        reading.notes.append(
            "a LoRA changes the text encoders for one prompt only; Overpaint uses it for both."
        )


def _walk(graph: Graph, link: Any) -> Iterator[Any]:
    return graph.walk_upstream(link[0]) if is_link(link) else iter(())
