"""Read ComfyUI's `prompt`: the graph that was run.

The nodes for samplers, schedules and LoRAs are rows of tables, so a node of an extension is one
more row.
"""

import re
from itertools import islice
from typing import Any, Literal

from overpaint.provenance.importers.collector import ImportedSettings, SettingsCollector
from overpaint.provenance.importers.comfyui.graph import (
    MAX_DEPTH,
    Graph,
    Node,
    is_link,
    join_bounded,
)
from overpaint.provenance.importers.comfyui.loras import add_loras
from overpaint.provenance.importers.comfyui.names import (
    put_comfyui_sampler,
    read_layers_to_skip,
)
from overpaint.provenance.importers.comfyui.prompt import translate_comfyui_prompt

_NUMBERS = {
    "seed": ("seed", int),
    "noise_seed": ("seed", int),
    "steps": ("num_inference_steps", int),
    "cfg": ("guidance_scale", float),
}
_SAMPLER = r"KSampler(?!Select)|SamplerCustom"
_UNDERSTOOD = re.compile(
    r"KSampler(Advanced)?|CheckpointLoader.*|CLIPTextEncode(SDXL)?|CLIPSetLastLayer"
    r"|Empty\w*LatentImage|VAE(Loader|Decode|Encode)|LoadImage|SaveImage|PreviewImage|Primitive.*"
    r"|Reroute.*"
)
"""Classes of nodes that are read, or do not change the picture."""

_SAMPLER_PARTS = ("noise", "guider", "sampler", "sigmas")
"""Inputs of `SamplerCustom` and `SamplerCustomAdvanced` whose nodes have its settings."""

_IMPLIED: dict[str, dict[str, Any]] = {
    "AlignYourStepsScheduler": {"scheduler": "align_your_steps"},
    "BasicGuider": {"cfg": 1.0},
    "BetaSamplingScheduler": {"scheduler": "beta"},
    "ExponentialScheduler": {"scheduler": "exponential"},
    "KarrasScheduler": {"scheduler": "karras"},
    "PolyexponentialScheduler": {"scheduler": "polyexponential"},
    "SDTurboScheduler": {"scheduler": "sgm_uniform"},
    "SamplerDPMPP_2M_SDE": {"sampler_name": "dpmpp_2m_sde"},
    "SamplerDPMPP_2S_Ancestral": {"sampler_name": "dpmpp_2s_ancestral"},
    "SamplerDPMPP_3M_SDE": {"sampler_name": "dpmpp_3m_sde"},
    "SamplerDPMPP_SDE": {"sampler_name": "dpmpp_sde"},
    "SamplerEulerAncestral": {"sampler_name": "euler_ancestral"},
    "SamplerLMS": {"sampler_name": "lms"},
}
"""Settings that the class of a sampler's part stands for."""

_Side = Literal["positive", "negative"]

_ALIASES = {"conditioning": "positive", "cond1": "positive"}
"""Inputs of guiders by the name of the same input of `KSampler`."""


def read_comfyui(text: str) -> ImportedSettings | None:
    """Read a ComfyUI graph: the sampler nearest to the saved picture, and its inputs."""
    text = re.sub(r"^\s*prompt:", "", text, flags=re.IGNORECASE)  # in EXIF
    graph = Graph.parse(text)
    ends = [key for key, node in graph.nodes.items() if re.match("Save|Preview", node.class_type)]
    reached = {node.id: node for node in graph.walk_upstream(*(ends or graph.nodes))}
    samplers = [node for node in reached.values() if re.match(_SAMPLER, node.class_type)]
    if not samplers:  # one of an extension, which has the same inputs
        samplers = [node for node in reached.values() if {"steps", "cfg"} <= node.inputs.keys()][:1]
    if not samplers:
        return None
    sampler, reading = _merge_sampler(graph, samplers[0]), SettingsCollector()
    numbers = {key: graph.read_value(sampler[key]) for key in _NUMBERS if key in sampler}
    reading.put_numbers(numbers, _NUMBERS)
    name, schedule = (graph.read_value(sampler.get(key)) for key in ("sampler_name", "scheduler"))
    if name is not None:
        put_comfyui_sampler(reading, name, schedule)
    encoders = _put_prompt(reading, graph, samplers[0].id, sampler, "positive")
    encoders += _put_prompt(reading, graph, samplers[0].id, sampler, "negative")
    _put_latent(reading, graph, samplers[0].id, sampler)
    clips = [encoder.inputs.get("clip") for encoder in encoders]
    model = sampler.get("model", [samplers[0].id, 0])
    add_loras(reading, graph, model, clips)
    if rescale := graph.find_nearest(sampler.get("model"), "RescaleCFG"):
        reading.put_number("guidance_rescale", graph.read_value(rescale.inputs.get("multiplier")))
        graph.translated.add(rescale.id)

    window = [f"{key} {sampler[key]}" for key in ("start_at_step", "end_at_step") if key in sampler]
    reading.note_lost("settings", window)
    reading.note_lost("further samplers", [node.class_type for node in samplers[1:]])
    graph.translated |= {node.id for node in samplers}
    lost = {n.class_type for n in reached.values() if n.id not in graph.translated}
    reading.note_lost("nodes", sorted(c for c in lost if not _UNDERSTOOD.fullmatch(c)))
    return reading.finish("ComfyUI", _read_model(graph, model))


def _merge_sampler(graph: Graph, sampler: Node) -> dict[str, Any]:
    """Return the inputs of a sampler together with those of the nodes that are its parts."""
    merged = dict(sampler.inputs)
    for part in _SAMPLER_PARTS:
        node = graph.get_source(sampler.inputs.get(part))
        if part == "sigmas" and node and "steps" not in node.inputs:  # such as SplitSigmas
            node = next((n for n in graph.walk_upstream(node.id) if "steps" in n.inputs), node)
        if node:
            graph.translated.add(node.id)
            inputs = {_ALIASES.get(key, key): value for key, value in node.inputs.items()}
            merged = _IMPLIED.get(node.class_type, {}) | inputs | merged
    return merged


def _read_model(graph: Graph, link: Any) -> str | None:
    for key in ("ckpt_name", "unet_name"):
        for node in graph.walk_upstream(link[0]) if is_link(link) else ():
            if isinstance(name := node.inputs.get(key), str):
                return name
    return None


def _put_prompt(
    reading: SettingsCollector, graph: Graph, start: str, sampler: dict[str, Any], side: _Side
) -> list[Node]:
    """Set the prompt of a sampler's conditioning, and return the nodes that encode its texts."""
    prefix = "" if side == "positive" else "negative_"
    if side in sampler:
        encoders = _list_encoders(graph, sampler[side], side)
    else:  # a pipe from a loader that has the prompts
        loaders = (n for n in graph.walk_upstream(start) if isinstance(n.inputs.get(side), str))
        encoders = list(islice(loaders, 1))
    graph.translated |= {encoder.id for encoder in encoders}
    for name, keys in {"prompt": ("text", "text_l", side), "prompt_2": ("text_g",)}.items():
        given = (encoder.inputs[k] for encoder in encoders for k in keys if k in encoder.inputs)
        # ConditioningConcat appends a text in separate chunks, as BREAK does.
        if text := join_bounded(map(graph.read_text, given), " BREAK "):
            reading.put_prompt(prefix + name, text, translate_comfyui_prompt)
    if not encoders:
        return []
    inputs = encoders[0].inputs
    for name, keys in {
        "original_size": ("height", "width"),
        "crops_coords_top_left": ("crop_h", "crop_w"),
        "target_size": ("target_height", "target_width"),
    }.items():
        if all(key in inputs for key in keys):
            reading.put(prefix + name, tuple(graph.read_value(inputs[key]) for key in keys))
    if not prefix and (layer := graph.find_nearest(inputs.get("clip"), "CLIPSetLastLayer")):
        stop = graph.read_value(layer.inputs.get("stop_at_clip_layer"))
        if isinstance(stop, int):
            reading.put("clip_skip", read_layers_to_skip(stop))
    return encoders


def _list_encoders(graph: Graph, link: Any, side: _Side) -> list[Node]:
    """Return the nodes that encode the texts of a conditioning; several if it is joined.

    A zeroed conditioning hides the text that it was made of, which is another prompt's.
    """
    seen: set[str] = set()

    def follow(link: Any, depth: int) -> list[Node]:
        node = graph.get_source(link)
        if node is None or node.id in seen or depth == MAX_DEPTH:
            return []
        seen.add(node.id)
        inputs = node.inputs
        if node.class_type == "ConditioningZeroOut":
            return []
        if "TextEncode" in node.class_type or isinstance(inputs.get(side), str):
            return [node]  # an encoder, or a loader with the prompts, such as "Efficient Loader"
        if node.class_type == "ConditioningConcat":
            graph.translated.add(node.id)
        if keys := [key for key in inputs if key.startswith("conditioning")]:
            keys.sort(key=lambda key: (key == "conditioning_from", key))  # it is after "_to"
            return [found for key in keys for found in follow(inputs[key], depth + 1)]
        # A node with both prompts, such as ControlNetApplyAdvanced, gives out each on its side.
        links = [inputs[side]] if side in inputs else list(inputs.values())
        return next((found for each in links if (found := follow(each, depth + 1))), [])

    return follow(link, 0)


def _put_latent(
    reading: SettingsCollector, graph: Graph, start: str, sampler: dict[str, Any]
) -> None:
    upstream = graph.walk_upstream(start)
    if empty := graph.find_nearest(sampler.get("latent_image"), "Empty"):
        for name in ("width", "height"):
            reading.put_number(name, graph.read_value(empty.inputs.get(name)), int)
    elif sizes := [n.inputs for n in upstream if "empty_latent_width" in n.inputs][:1]:
        for name in ("width", "height"):
            reading.put_number(name, graph.read_value(sizes[0].get(f"empty_latent_{name}")), int)
    elif "denoise" in sampler:
        reading.put_number("strength", graph.read_value(sampler["denoise"]))
