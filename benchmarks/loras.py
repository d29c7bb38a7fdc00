"""Measure the time to switch among eight LoRAs, against diffusers.

Overpaint merges each LoRA from a pristine copy of the weights, in one pass over the changed layers.
diffusers has three methods:

| method | switch | network calls |
|---|---|---|
| fused | `unfuse_lora` and `fuse_lora`, with all eight loaded | as fast as without a LoRA |
| beside | `set_adapters`, with all eight loaded | slower: layers have additional paths |
| reloaded | `unload_lora_weights` and `load_lora_weights`, from the file | slower |

A picture takes one switch, and slower calls at every step. The comparison uses the method that is
fastest over a picture of 30 steps. Two facts favor diffusers: fusing in 16 bits does not restore
the base exactly, and the text encoders' part of the slower calls is not counted.
"""

import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.harness import interleave, print_line
from benchmarks.peer import load_pairs
from overpaint.models.adapters import Adapter, Adapters, get_adapter_merger
from overpaint.models.lora import get_part, load_lora
from overpaint.models.model import Model
from overpaint.nn.packed import list_weight_shapes

COUNT, RANK, STEPS, CALLS = 8, 16, 30, 5
CHANGED = {
    "unet": ".attentions.",
    "text_encoder": "encoder.layers.",
    "text_encoder_2": "encoder.layers.",
}
"""The parts that LoRAs change, and the names of their changed linear layers: kohya's default."""


def measure(*, quick: bool) -> dict[str, Any]:
    """Measure the switch for each model."""
    found: dict[str, Any] = {}
    for name, painter, pipeline in load_pairs(quick=quick):
        rounds = 9 if name == "miniature" and not quick else 3
        found[name] = compare(painter.model, pipeline, rounds=rounds)
    return found


def compare(model: Model, pipeline: Any, rounds: int) -> dict[str, Any]:
    """Time all methods; print and return seconds per switch and ratios.

    Raises:
        RuntimeError: a LoRA changes the two networks differently.
    """
    with tempfile.TemporaryDirectory(prefix="overpaint-bench-") as temporary:
        files = [write_lora(Path(temporary) / f"{i}.safetensors", model, i) for i in range(COUNT)]
        adapters = [(Adapter(load_lora(file, model)),) for file in files]
        overpaint = {"overpaint": lambda: [apply_adapters(model, own) for own in adapters]}
        peer = Diffusers(pipeline, files)
        loading = interleave(overpaint | {"reloaded": peer.reload}, min(rounds, 3))
        peer.load()
        apply_adapters(model, adapters[0])
        difference = peer.measure_difference(model)
        timings = interleave(overpaint | {"fused": peer.fuse, "beside": peer.set}, rounds)
    slower = peer.measure_slowdown(rounds)
    switch = {name: timings.median(name) / COUNT for name in timings.seconds}
    switch["reloaded"] = loading.median("reloaded") / COUNT
    picture = {"fused": switch["fused"]}
    picture |= {name: switch[name] + STEPS * slower for name in ("beside", "reloaded")}
    cheapest = min(picture, key=picture.__getitem__)
    result = {
        "ratio": round(
            timings.ratio("overpaint", "fused") * switch["fused"] / picture[cheapest], 3
        ),
        "cheapest": cheapest,
        "ratio_fused": round(timings.ratio("overpaint", "fused"), 3),
        "ratio_reloaded": round(loading.ratio("overpaint", "reloaded"), 3),
        **{f"{name}_seconds": round(seconds, 4) for name, seconds in switch.items()},
        "call_slower_seconds": round(slower, 4),
        "layers": sum(len(changes) for changes in adapters[0][0].lora.changes.values()),
        "difference": float(f"{difference:.1e}"),
    }
    print_line("  " + ", ".join(f"{key} {value}" for key, value in result.items()))
    return result


def apply_adapters(model: Model, adapters: Adapters) -> None:
    for part in CHANGED:
        get_adapter_merger(model).use(part, adapters)


class Diffusers:
    """diffusers' methods to apply each of several LoRAs in turn."""

    def __init__(self, pipeline: Any, files: Sequence[Path]):
        self._pipeline = pipeline
        self._files = files
        self._names = [f"lora_{file.stem}" for file in files]

    def reload(self) -> None:
        for file in self._files:
            self._load(file, "lora")
            self._pipeline.unload_lora_weights()

    def load(self) -> None:
        """Load all LoRAs and keep them."""
        for file, name in zip(self._files, self._names, strict=True):
            self._load(file, name)

    def fuse(self) -> None:
        for name in self._names:
            self._fuse_one(name)
            self._pipeline.unfuse_lora(components=list(CHANGED))

    def set(self) -> None:
        for name in self._names:
            self._pipeline.set_adapters(name)

    def measure_difference(self, model: Model) -> float:
        """Return how far predictions with the first LoRA differ, relative to the LoRA's effect."""
        self._pipeline.disable_lora()
        plain, _ = run_guided_call(self._pipeline.unet)
        self._pipeline.enable_lora()
        self._pipeline.set_adapters(self._names[0])
        changed, _ = run_guided_call(self._pipeline.unet)
        own, _ = run_guided_call(model.unet)
        difference = float((own - changed).norm() / (changed - plain).norm())
        if not difference < 0.1:
            raise RuntimeError(
                f"Overpaint and diffusers differ by {difference:.2g} of the effect of a LoRA."
            )
        return difference

    def measure_slowdown(self, rounds: int) -> float:
        """Return the seconds by which a call with additional paths is slower than a fused one."""
        found: list[float] = []
        for _ in range(rounds):
            self._pipeline.set_adapters(self._names[0])
            beside = measure_fastest_call(self._pipeline.unet)
            self._fuse_one(self._names[0])
            fused = measure_fastest_call(self._pipeline.unet)
            self._pipeline.unfuse_lora(components=list(CHANGED))
            found.append(beside - fused)
        return max(0.0, median(found))

    def _fuse_one(self, name: str) -> None:
        self._pipeline.fuse_lora(components=list(CHANGED), adapter_names=[name])

    def _load(self, file: Path, name: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about more than one adapter
            self._pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)


def measure_fastest_call(unet: Any) -> float:
    """Return the seconds of the fastest of a few calls, which other load disturbs least."""
    return min(run_guided_call(unet)[1] for _ in range(CALLS))


@torch.inference_mode()
def run_guided_call(unet: Any) -> tuple[Tensor, float]:
    """Run a guided network call at half the native side; return the output and the seconds."""
    generator = torch.Generator().manual_seed(0)
    side, config = unet.config["sample_size"] // 2, unet.config
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    shapes = (2, 4, side, side), (2, 77, config["cross_attention_dim"]), (2, pooled)
    x, context, text = (torch.randn(s, generator=generator).to(unet.dtype) for s in shapes)
    added = {"text_embeds": text, "time_ids": torch.full((2, 6), 8.0 * side, dtype=unet.dtype)}
    start = time.perf_counter()
    result = unet(x, torch.tensor(500), context, added_cond_kwargs=added, return_dict=False)[0]
    return result.float(), time.perf_counter() - start


def write_lora(path: Path, model: Model, seed: int) -> Path:
    """Write a random LoRA of a checkpoint's linear layers, in fp16, in diffusers' naming."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for part, where in CHANGED.items():
        for name, shape in list_weight_shapes(get_part(model, part)).items():
            if where not in f".{name}" or len(shape) != 2:
                continue
            plain = name if part == "unet" else f"text_model.{name.removeprefix('text_model.')}"
            down = torch.randn(RANK, shape[1], generator=generator) / shape[1] ** 0.5
            up = torch.randn(shape[0], RANK, generator=generator) * 0.1
            state[f"{part}.{plain}.lora_A.weight"] = down.half()
            state[f"{part}.{plain}.lora_B.weight"] = up.half()
    save_file(state, path)
    return path
