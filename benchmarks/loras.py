"""Eight LoRAs in turn: what it takes until the next one acts, beside diffusers.

Overpaint merges each from a pristine copy of the weights, in one pass over what it changes.
diffusers has three ways:

| way | a switch | the network's calls |
|---|---|---|
| fused | `unfuse_lora` and `fuse_lora`, of eight that are loaded | as fast as ever |
| beside | `set_adapters`, of eight that are loaded | slower: layers have paths beside them |
| reloaded | `unload_lora_weights` and `load_lora_weights`, from the file | likewise |

A picture pays for its switch once and for slower calls at every step, so the peer is the way that
costs least over a picture of 30 steps. (Fused in 16 bits, the base is never itself again; the text
encoders' part of the slower calls is left out, in diffusers' favour.)
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

from benchmarks.harness import interleave, say
from benchmarks.peer import pairs
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
"""The parts that LoRAs change, and where in them every linear layer: kohya's default."""


def measure(*, quick: bool) -> dict[str, Any]:
    """For each model, what a switch takes."""
    found: dict[str, Any] = {}
    for name, painter, pipeline in pairs(quick=quick):
        rounds = 9 if name == "miniature" and not quick else 3
        found[name] = compare(painter.model, pipeline, rounds=rounds)
    return found


def compare(model: Model, pipeline: Any, rounds: int) -> dict[str, Any]:
    """Time all ways; says and returns seconds per switch and ratios.

    Raises:
        RuntimeError: a LoRA does not do the same to both networks.
    """
    with tempfile.TemporaryDirectory(prefix="overpaint-bench-") as temporary:
        files = [write_lora(Path(temporary) / f"{i}.safetensors", model, i) for i in range(COUNT)]
        adapters = [(Adapter(load_lora(file, model)),) for file in files]
        ours = {"ours": lambda: [use(model, own) for own in adapters]}
        theirs = Diffusers(pipeline, files)
        loading = interleave(ours | {"reloaded": theirs.reload}, min(rounds, 3))
        theirs.load()
        use(model, adapters[0])
        difference = theirs.compared(model)
        timings = interleave(ours | {"fused": theirs.fuse, "beside": theirs.set}, rounds)
    slower = theirs.slower(rounds)
    switch = {name: timings.median(name) / COUNT for name in timings.seconds}
    switch["reloaded"] = loading.median("reloaded") / COUNT
    picture = {"fused": switch["fused"]}
    picture |= {name: switch[name] + STEPS * slower for name in ("beside", "reloaded")}
    cheapest = min(picture, key=picture.__getitem__)
    result = {
        "ratio": round(timings.ratio("ours", "fused") * switch["fused"] / picture[cheapest], 3),
        "cheapest": cheapest,
        "ratio_fused": round(timings.ratio("ours", "fused"), 3),
        "ratio_reloaded": round(loading.ratio("ours", "reloaded"), 3),
        **{f"{name}_seconds": round(seconds, 4) for name, seconds in switch.items()},
        "call_slower_seconds": round(slower, 4),
        "layers": sum(len(changes) for changes in adapters[0][0].lora.changes.values()),
        "difference": float(f"{difference:.1e}"),
    }
    say("  " + ", ".join(f"{key} {value}" for key, value in result.items()))
    return result


def use(model: Model, adapters: Adapters) -> None:
    for part in CHANGED:
        get_adapter_merger(model).use(part, adapters)


class Diffusers:
    """diffusers' ways of having each of some LoRAs act in turn."""

    def __init__(self, pipeline: Any, files: Sequence[Path]):
        self._pipeline = pipeline
        self._files = files
        self._names = [f"lora_{file.stem}" for file in files]

    def reload(self) -> None:
        for file in self._files:
            self._load(file, "lora")
            self._pipeline.unload_lora_weights()

    def load(self) -> None:
        """All of them, to stay."""
        for file, name in zip(self._files, self._names, strict=True):
            self._load(file, name)

    def fuse(self) -> None:
        for name in self._names:
            self._fused(name)
            self._pipeline.unfuse_lora(components=list(CHANGED))

    def set(self) -> None:
        for name in self._names:
            self._pipeline.set_adapters(name)

    def compared(self, model: Model) -> float:
        """How far predictions with the first LoRA differ, against what it changes in them."""
        self._pipeline.disable_lora()
        plain, _ = predicted(self._pipeline.unet)
        self._pipeline.enable_lora()
        self._pipeline.set_adapters(self._names[0])
        changed, _ = predicted(self._pipeline.unet)
        ours, _ = predicted(model.unet)
        difference = float((ours - changed).norm() / (changed - plain).norm())
        if not difference < 0.1:
            raise RuntimeError(f"ours and theirs differ by {difference:.2g} of what a LoRA changes")
        return difference

    def slower(self, rounds: int) -> float:
        """By how many seconds a call with a path beside its layers is slower."""
        found: list[float] = []
        for _ in range(rounds):
            self._pipeline.set_adapters(self._names[0])
            beside = swiftest(self._pipeline.unet)
            self._fused(self._names[0])
            fused = swiftest(self._pipeline.unet)
            self._pipeline.unfuse_lora(components=list(CHANGED))
            found.append(beside - fused)
        return max(0.0, median(found))

    def _fused(self, name: str) -> None:
        self._pipeline.fuse_lora(components=list(CHANGED), adapter_names=[name])

    def _load(self, file: Path, name: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is more than one
            self._pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)


def swiftest(unet: Any) -> float:
    """Seconds of the swiftest of a few calls: what else the machine does can only add to them."""
    return min(predicted(unet)[1] for _ in range(CALLS))


@torch.inference_mode()
def predicted(unet: Any) -> tuple[Tensor, float]:
    """A guided call of a network at half its native side, and the seconds that it took."""
    generator = torch.Generator().manual_seed(0)
    side, config = unet.config["sample_size"] // 2, unet.config
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    shapes = (2, 4, side, side), (2, 77, config["cross_attention_dim"]), (2, pooled)
    x, context, text = (torch.randn(s, generator=generator).to(unet.dtype) for s in shapes)
    told = {"text_embeds": text, "time_ids": torch.full((2, 6), 8.0 * side, dtype=unet.dtype)}
    start = time.perf_counter()
    result = unet(x, torch.tensor(500), context, added_cond_kwargs=told, return_dict=False)[0]
    return result.float(), time.perf_counter() - start


def write_lora(path: Path, model: Model, seed: int) -> Path:
    """A random LoRA of a checkpoint's linear layers, in fp16, in diffusers' naming."""
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
