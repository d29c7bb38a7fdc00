"""Read ComfyUI's `prompt`: the graph that was run.

A graph is {id: {class_type, inputs}}; an input that is a link is [id, slot].
"""

import re
from collections.abc import Iterator
from typing import Any

from overpaint.provenance.importers.collector import (
    ImportedSettings,
    SettingsCollector,
    parse_json_object,
)

_Node = dict[str, Any]
_COMFY_SAMPLERS = {"dpm_2": "dpm2", "dpm_2_ancestral": "dpm2_a", "uni_pc_bh2": "unipc"}
_COMFY_SCHEDULES = {"normal": "linspace", "ddim_uniform": "normal"}
_COMFY_UNDERSTOOD = re.compile(
    r"KSampler(Advanced)?|CheckpointLoader.*|CLIPTextEncode(SDXL)?|CLIPSetLastLayer"
    r"|Empty\w*LatentImage|VAE(Loader|Decode|Encode)|LoadImage|SaveImage|PreviewImage|Primitive.*"
)


def read_comfyui(text: str) -> ImportedSettings | None:
    """Read a ComfyUI graph: the KSampler nearest to the saved picture, and its inputs."""
    graph = _comfy_graph(text)
    ends = [key for key, node in graph.items() if re.match("Save|Preview", node["class_type"])]
    reached = {key: node for end in ends or graph for key, node in _upstream(graph, end)}
    samplers = [node for node in reached.values() if node["class_type"].startswith("KSampler")]
    if not samplers:
        return None
    sampler, reading = samplers[0]["inputs"], SettingsCollector()
    for key, name in {
        "seed": "seed",
        "noise_seed": "seed",
        "steps": "num_inference_steps",
        "cfg": "guidance_scale",
    }.items():
        if key in sampler:
            reading.put(name, _literal(graph, sampler[key]))
    name = str(_literal(graph, sampler.get("sampler_name"))).removesuffix("_gpu")
    schedule = str(_literal(graph, sampler.get("scheduler")))
    reading.put_sampler(_COMFY_SAMPLERS.get(name, name), _COMFY_SCHEDULES.get(schedule, schedule))
    _comfy_prompt(reading, graph, sampler.get("positive"), "")
    _comfy_prompt(reading, graph, sampler.get("negative"), "negative_")
    _comfy_latent(reading, graph, sampler)

    window = [f"{key} {sampler[key]}" for key in ("start_at_step", "end_at_step") if key in sampler]
    reading.note_lost("settings", window)
    reading.note_lost("further samplers", [node["class_type"] for node in samplers[1:]])
    classes = sorted({node["class_type"] for node in reached.values()})
    reading.note_lost("nodes", [name for name in classes if not _COMFY_UNDERSTOOD.fullmatch(name)])
    loader = _nearest(graph, sampler.get("model"), "CheckpointLoader")
    model = loader and loader.get("ckpt_name")
    return reading.finish("ComfyUI", model if isinstance(model, str) else None)


def _comfy_prompt(
    reading: SettingsCollector, graph: dict[str, _Node], link: Any, prefix: str
) -> None:
    # A zeroed conditioning hides the text that it was made of, which is another prompt's.
    if _nearest(graph, link, "ConditioningZeroOut"):
        return
    inputs = _nearest(graph, link, "CLIPTextEncode")
    if inputs is None:
        return
    if "text" in inputs:
        reading.put(f"{prefix}prompt", _literal(graph, inputs["text"]))
    elif "text_l" in inputs:  # CLIPTextEncodeSDXL
        reading.put(f"{prefix}prompt", _literal(graph, inputs["text_l"]))
        reading.put(f"{prefix}prompt_2", _literal(graph, inputs.get("text_g")))
        for name, keys in {
            "original_size": ("height", "width"),
            "crops_coords_top_left": ("crop_h", "crop_w"),
            "target_size": ("target_height", "target_width"),
        }.items():
            if all(key in inputs for key in keys):
                reading.put(prefix + name, tuple(_literal(graph, inputs[key]) for key in keys))
    if not prefix and (layer := _nearest(graph, inputs.get("clip"), "CLIPSetLastLayer")):
        stop = _literal(graph, layer.get("stop_at_clip_layer"))
        if isinstance(stop, int):  # -2 is the penultimate layer, Overpaint's 0
            reading.put("clip_skip", max(-stop - 2, 0))


def _comfy_latent(
    reading: SettingsCollector, graph: dict[str, _Node], sampler: dict[str, Any]
) -> None:
    link = sampler.get("latent_image")
    if empty := _nearest(graph, link, "Empty"):
        for name in ("width", "height"):
            reading.put(name, _literal(graph, empty.get(name)))
    elif "denoise" in sampler:
        reading.put("strength", _literal(graph, sampler["denoise"]))


def _comfy_graph(text: str) -> dict[str, _Node]:
    return {
        key: node
        for key, node in (parse_json_object(text) or {}).items()
        if isinstance(node, dict)
        and isinstance(node.get("class_type"), str)
        and isinstance(node.get("inputs"), dict)
    }


def _upstream(graph: dict[str, _Node], start: str) -> Iterator[tuple[str, _Node]]:
    """The node `start` and all that feed it, nearest first, each once."""
    queue, seen = [start], {start}
    for key in queue:
        if key not in graph:
            continue
        yield key, graph[key]
        for value in graph[key]["inputs"].values():
            if (source := _source(value)) and source not in seen:
                seen.add(source)
                queue.append(source)


def _nearest(graph: dict[str, _Node], link: Any, class_prefix: str) -> dict[str, Any] | None:
    """The inputs of the nearest node upstream of a link whose class begins so."""
    for _, node in _upstream(graph, _source(link) or ""):
        if node["class_type"].startswith(class_prefix):
            return node["inputs"]
    return None


def _literal(graph: dict[str, _Node], value: Any) -> Any:
    """A value, or through a link the one that the nearest primitive node holds."""
    if not (source := _source(value)):
        return value
    for _, node in _upstream(graph, source):
        for key in ("value", "text", "string", "seed", "int", "float"):
            if key in node["inputs"] and not _source(node["inputs"][key]):
                return node["inputs"][key]
    return None


def _source(value: Any) -> str | None:
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str):
        return value[0]
    return None
