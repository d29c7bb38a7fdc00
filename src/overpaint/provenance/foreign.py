"""Settings that other programs leave in their pictures, read as fields of our `Request`.

One function for each program: text in, `Found` out, or None where the text is not theirs. What has
no counterpart here, or a value that we would refuse, becomes a note; nothing is dropped unsaid.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from overpaint.errors import RequestError
from overpaint.picture import Picture
from overpaint.registry import resolve_sampler, resolve_schedule
from overpaint.request import Request


@dataclass(frozen=True)
class Found:
    """Settings found in a picture.

    Attributes:
        program: that made it: "overpaint", "A1111", "ComfyUI" or "InvokeAI".
        fields: names and values for `Request`, each one valid by itself.
        model: the checkpoint's name, as that program calls it.
        notes: what could not be carried over.
        record: our own record in full, where the picture is ours.
    """

    program: str
    fields: dict[str, Any]
    model: str | None = None
    notes: tuple[str, ...] = ()
    record: dict[str, Any] | None = field(default=None, repr=False)


@dataclass
class _Reading:
    """Fields and notes as they are gathered."""

    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    notes: list[str] = field(default_factory=list[str])

    def put(self, name: str, value: Any) -> None:
        """Set a field, or note why its value will not do."""
        try:
            # Strength and fit are refused without an image, so every trial has one.
            Request.model_validate({"image": Picture(data=b"any"), name: value})
        except RequestError as error:
            self.notes.append(f"left out: {error}")
        else:
            self.fields[name] = value

    def put_number(self, name: str, text: str, kind: Callable[[str], Any] = float) -> None:
        try:
            self.put(name, kind(text))
        except ValueError:
            self.notes.append(f"left out: {name}: {text!r} is not a number.")

    def put_sampler(self, sampler: str, schedule: str | None) -> None:
        """Set the sampler, and the schedule where one is named by itself or by the sampler."""
        try:
            self.fields["sampler"], implied = resolve_sampler(sampler)
        except RequestError:
            self.notes.append(f"left out: there is no sampler {sampler!r} here.")
            implied = None
        if schedule := schedule or implied:
            try:
                self.fields["schedule"] = resolve_schedule(schedule)
            except RequestError:
                self.notes.append(f"left out: there is no schedule {schedule!r} here.")

    def lost(self, what: str, names: "list[str]") -> None:
        if names:
            self.notes.append(f"{what} not carried over: {', '.join(names)}.")

    def found(self, program: str, model: str | None) -> Found:
        return Found(program, self.fields, model, tuple(self.notes))


# A1111 (and Forge, SD.Next, Civitai): `parameters`, as modules/infotext_utils.py reads it

_PAIR = re.compile(r'(?:^|(?<=,))\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])++"|[^,]*)(?:,|$)')
_NEGATIVE = "Negative prompt:"
_A1111_OWN = {"Sampler", "Schedule type", "Size", "Clip skip", "Model", "Model hash", "Version"}
# What "Automatic" stands for (modules/sd_samplers_kdiffusion.py); for all others it is Uniform.
_AUTOMATIC = {
    "dpm2": "karras",
    "dpm2_a": "karras",
    "dpmpp_2m": "karras",
    "dpmpp_2s_a": "karras",
    "dpmpp_sde": "karras",
    "dpmpp_2m_sde": "exponential",
    "dpmpp_3m_sde": "exponential",
}


def a1111(text: str) -> Found | None:
    """Read an A1111 `parameters` text: prompt, negative prompt, and a last line of pairs.

    A prompt that itself holds a line "Negative prompt:" cannot be told apart; the format has no
    escape for it.
    """
    *lines, last = text.strip().split("\n")
    pairs = a1111_pairs(last)
    if "Steps" not in pairs or len(pairs) < 3:
        return None
    prompt, negative = _split_prompts("\n".join(lines))
    reading = _Reading()
    reading.put("prompt", prompt)
    reading.put("negative_prompt", negative)
    reading.put_number("num_inference_steps", pairs.pop("Steps"), int)
    if "CFG scale" in pairs:
        reading.put_number("guidance_scale", pairs.pop("CFG scale"))
    if "Seed" in pairs:
        reading.put_number("seed", pairs.pop("Seed"), int)
    if "Denoising strength" in pairs and not any(key.startswith("Hires") for key in pairs):
        reading.put_number("strength", pairs.pop("Denoising strength"))
        reading.fields["steps"] = "truncate"  # A1111 runs about steps × strength of them
    if "Sampler" in pairs:
        _a1111_sampler(reading, pairs["Sampler"], pairs.get("Schedule type"))
    if size := re.fullmatch(r"(\d+)x(\d+)", pairs.get("Size", "")):
        reading.put("width", int(size[1]))
        reading.put("height", int(size[2]))
    if "Clip skip" in pairs:  # 1 and 2 are the same for SDXL: the penultimate layer
        reading.put_number("clip_skip", pairs["Clip skip"], lambda skip: max(int(skip) - 2, 0))
    lost = [f"{key} {value}" for key, value in pairs.items() if key not in _A1111_OWN]
    reading.lost("settings", lost)
    return reading.found("A1111", pairs.get("Model"))


def a1111_pairs(line: str) -> dict[str, str]:
    """The settings in the last line of an A1111 `parameters` text."""
    return {key: _unquote(value) for key, value in _PAIR.findall(line)}


def a1111_schedule(sampler: str, label: str) -> str:
    """Our name of a schedule by A1111's, for a sampler by our name.

    Raises:
        RequestError: no such schedule; near matches are named.
    """
    match label.lower():
        case "automatic":
            return _AUTOMATIC.get(sampler, "linspace")
        case "normal":
            return "linspace"
        case _:
            return resolve_schedule(label)


def _split_prompts(text: str) -> tuple[str, str]:
    if text.startswith(_NEGATIVE):
        text = "\n" + text
    prompt, _, negative = text.partition("\n" + _NEGATIVE)
    return prompt, negative.removeprefix(" ")


def _a1111_sampler(reading: _Reading, sampler: str, schedule: str | None) -> None:
    if schedule in ("Automatic", "Normal"):
        reading.put_sampler(sampler, None)
        reading.fields["schedule"] = a1111_schedule(reading.fields.get("sampler", ""), schedule)
    else:
        reading.put_sampler(sampler, schedule)
        if schedule is None:  # before version 1.9 the sampler's name said it all
            reading.fields.setdefault("schedule", "linspace")


def _unquote(value: str) -> str:
    if value.startswith('"'):
        try:
            return str(json.loads(value))
        except ValueError:
            return value
    return value


# InvokeAI: `invokeai_metadata`, as invokeai/app/invocations/metadata.py writes it

_INVOKEAI = {
    "positive_prompt": "prompt",
    "positive_style_prompt": "prompt_2",
    "negative_prompt": "negative_prompt",
    "negative_style_prompt": "negative_prompt_2",
    "width": "width",
    "height": "height",
    "seed": "seed",
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "cfg_rescale_multiplier": "guidance_rescale",
    "strength": "strength",
}
_INVOKEAI_SAMPLERS = {"kdpm_2": "dpm2", "kdpm_2_a": "dpm2_a"}
# Read separately, or of no effect on the picture.
_INVOKEAI_IDLE = {"app_version", "generation_mode", "rand_device", "model", "scheduler"}


def invokeai(text: str) -> Found | None:
    """Read InvokeAI's `invokeai_metadata` JSON."""
    data = _json_object(text)
    if data is None or "positive_prompt" not in data:
        return None
    reading = _Reading()
    # An empty style prompt there means that the prompt serves both encoders.
    given = {key: value for key, value in data.items() if value not in (None, "", [], {}, False)}
    for key, name in _INVOKEAI.items():
        if key in given:
            reading.put(name, given.pop(key))
    if "strength" in reading.fields:
        reading.fields["steps"] = "truncate"
    if isinstance(scheduler := given.get("scheduler"), str):
        sampler = scheduler.removesuffix("_k")
        schedule = "karras" if sampler != scheduler else "normal"
        reading.put_sampler(_INVOKEAI_SAMPLERS.get(sampler, sampler), schedule)
    reading.lost("settings", [key for key in given if key not in _INVOKEAI_IDLE])
    model: Any = given.get("model")
    if isinstance(model, dict):
        model = model.get("name") or model.get("model_name")
    return reading.found("InvokeAI", model if isinstance(model, str) else None)


# ComfyUI: `prompt`, the graph that was run: {id: {class_type, inputs}}, links are [id, slot]

_Node = dict[str, Any]
_COMFY_SAMPLERS = {"dpm_2": "dpm2", "dpm_2_ancestral": "dpm2_a", "uni_pc_bh2": "unipc"}
_COMFY_SCHEDULES = {"normal": "linspace", "ddim_uniform": "normal"}
_COMFY_UNDERSTOOD = re.compile(
    r"KSampler(Advanced)?|CheckpointLoader.*|CLIPTextEncode(SDXL)?|CLIPSetLastLayer"
    r"|Empty\w*LatentImage|VAE(Loader|Decode|Encode)|LoadImage|SaveImage|PreviewImage|Primitive.*"
)


def comfyui(text: str) -> Found | None:
    """Read a ComfyUI graph: the KSampler nearest to the saved picture and what it is fed."""
    graph = _comfy_graph(text)
    ends = [key for key, node in graph.items() if re.match("Save|Preview", node["class_type"])]
    reached = {key: node for end in ends or graph for key, node in _upstream(graph, end)}
    samplers = [node for node in reached.values() if node["class_type"].startswith("KSampler")]
    if not samplers:
        return None
    sampler, reading = samplers[0]["inputs"], _Reading()
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
    reading.lost("settings", window)
    reading.lost("further samplers", [node["class_type"] for node in samplers[1:]])
    classes = sorted({node["class_type"] for node in reached.values()})
    reading.lost("nodes", [name for name in classes if not _COMFY_UNDERSTOOD.fullmatch(name)])
    loader = _nearest(graph, sampler.get("model"), "CheckpointLoader")
    model = loader and loader.get("ckpt_name")
    return reading.found("ComfyUI", model if isinstance(model, str) else None)


def _comfy_prompt(reading: _Reading, graph: dict[str, _Node], link: Any, prefix: str) -> None:
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
        if isinstance(stop, int):  # -2 is the penultimate layer, our 0
            reading.put("clip_skip", max(-stop - 2, 0))


def _comfy_latent(reading: _Reading, graph: dict[str, _Node], sampler: dict[str, Any]) -> None:
    link = sampler.get("latent_image")
    if empty := _nearest(graph, link, "Empty"):
        for name in ("width", "height"):
            reading.put(name, _literal(graph, empty.get(name)))
    elif "denoise" in sampler:
        reading.put("strength", _literal(graph, sampler["denoise"]))


def _comfy_graph(text: str) -> dict[str, _Node]:
    return {
        key: node
        for key, node in (_json_object(text) or {}).items()
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


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None
