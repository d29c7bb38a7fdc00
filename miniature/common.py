"""Shared parts of the trainers: schedule, averaged weights, resumable state, progress."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from overpaint.nn.kernels import emulates_bf16

LARGE = 4096  # elements, beyond which a tensor is stored in 8 bits


def cosine(step: int, steps: int, warmup: int = 100, floor: float = 0.01) -> float:
    """Return the share of the peak learning rate at a step: linear warm-up, then half a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def half_precision() -> torch.autocast:
    """Autocast to bf16, where the processor computes in it faster than in fp32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=not emulates_bf16(torch.device("cpu")))


def generator(seed: int, step: int) -> torch.Generator:
    """Return the generator of a step, which depends on (seed, step) only, for resumed runs."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


@dataclass
class Trainee:
    """A module with its averaged copy and its optimizer; saved and resumed as one file."""

    module: nn.Module
    rate: float
    decay: float = 0.999
    weight_decay: float = 0.01
    averaged: nn.Module = field(init=False)
    optimizer: torch.optim.AdamW = field(init=False)
    step: int = 0
    begun: int = 0  # the step that the rate's schedule began at
    until: int = 0  # and the one that it ends at

    def __post_init__(self) -> None:
        self.averaged = copy.deepcopy(self.module).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(),
            self.rate,
            betas=(0.9, 0.99),
            weight_decay=self.weight_decay,
            fused=True,
        )

    def train(
        self,
        name: str,
        steps: int,
        loss: Callable[[int], Tensor],
        state: Path,
        *,
        warmup: int = 100,
        every: int = 100,
    ) -> None:
        """Train up to a number of steps; continue from `state` if it exists.

        A finished run with more steps restarts its schedule (Loshchilov & Hutter 2017, "SGDR"),
        because its learning rate has decayed to zero.

        Args:
            name: for the progress.
            steps: in all.
            loss: of a step.
            state: the file to write after each `every` steps.
            warmup: steps until the rate is at its peak.
            every: steps between writes, and between reports of the mean loss.
        """
        if state.exists():
            self.load(state)
        if self.step >= self.until:
            self.begun = self.step
        self.until = steps
        last: deque[float] = deque(maxlen=every)
        for step, report in progress(name, self.step, steps, every=every):
            value = loss(step)
            norm = self.update(value, cosine(step - self.begun, steps - self.begun, warmup))
            last.append(value.item())
            if report:
                print(f"  loss {sum(last) / len(last):.4f} gradient {norm:.2f}", flush=True)
                self.save(state)

    def update(self, loss: Tensor, share: float, clip: float = 1.0) -> float:
        """One optimizer step at `share` of the peak rate; returns the gradient's norm.

        A step whose gradient is not finite is skipped and said aloud.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * share
        self.optimizer.zero_grad()
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(self.module.parameters(), clip))
        self.step += 1
        if not math.isfinite(norm):
            print(f"step {self.step}: gradient not finite, skipped", flush=True)
            return norm
        self.optimizer.step()
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            pairs = zip(self.averaged.parameters(), self.module.parameters(), strict=True)
            for old, new in pairs:
                old.lerp_(new, 1 - decay)
        return norm

    def save(self, path: Path) -> None:
        """Write module, average, Adam's moments and the step, atomically."""
        tensors = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        tensors |= {f"averaged.{k}": v for k, v in self.averaged.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            state = self.optimizer.state.get(parameter)
            if state:
                tensors |= {f"adam.{k}.{name}": v for k, v in state.items()}
        tensors = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
        temporary = path.with_suffix(".partial")
        run = {"step": self.step, "begun": self.begun, "until": self.until}
        save_file(tensors, temporary, {"run": json.dumps(run)})
        os.replace(temporary, path)

    def load(self, path: Path) -> None:
        """Load the state that `save` wrote."""
        tensors = read_tensors(path)
        with safe_open(path, "pt") as file:
            run = json.loads(file.metadata()["run"])
        self.step, self.begun, self.until = run["step"], run["begun"], run["until"]
        self.module.load_state_dict(_under(tensors, "module."))
        self.averaged.load_state_dict(_under(tensors, "averaged."))
        moments = _under(tensors, "adam.")
        for name, parameter in self.module.named_parameters():
            keys = ("step", "exp_avg", "exp_avg_sq")
            if f"exp_avg.{name}" in moments:
                self.optimizer.state[parameter] = {k: moments[f"{k}.{name}"] for k in keys}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file."""
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def stored(value: Tensor) -> Tensor:
    """A tensor as nets and LoRAs are exported: in fp16, if it is large in 8 bits, within 3 %."""
    return value.to(torch.float8_e4m3fn) if value.numel() > LARGE else value.half()


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file atomically."""
    temporary = path.with_suffix(".partial")
    save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata)
    os.replace(temporary, path)


def unwritten(name: str, sources: Path, folder: Path) -> Iterator[tuple[dict[str, Tensor], Path]]:
    """Every chunk of `sources` that `folder` does not have yet, and the file it is to go to."""
    folder.mkdir(parents=True, exist_ok=True)
    found = sorted(sources.glob("*.safetensors"))
    for n, _ in progress(name, 0, len(found), every=1):
        path = folder / found[n].name
        if not path.exists():
            yield read_tensors(found[n]), path


def unwritten_seeds(
    name: str, seeds: range, chunk: int, folder: Path
) -> Iterator[tuple[range, Path]]:
    """Every `chunk` seeds that `folder` has no file of yet, and the file they are to go to."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(seeds.start, seeds.stop, chunk)
    for n, _ in progress(name, 0, len(starts), every=1):
        path = folder / f"{starts[n]}.safetensors"
        if not path.exists():
            yield range(starts[n], min(starts[n] + chunk, seeds.stop)), path


def averaged_weights(path: Path) -> dict[str, Tensor]:
    """The averaged weights of a state that `Trainee.save` wrote."""
    return _under(read_tensors(path), "averaged.")


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def progress(name: str, start: int, stop: int, every: int = 50) -> Iterator[tuple[int, bool]]:
    """Count steps; every now and then the second value is True and the pace is printed."""
    began = time.monotonic()
    for step in range(start, stop):
        report = (step + 1) % every == 0 or step + 1 == stop
        yield step, report
        if report:
            pace = (time.monotonic() - began) / (step + 1 - start)
            left = pace * (stop - step - 1)
            print(
                f"{time.strftime('%H:%M:%S')} {name} {step + 1}/{stop}"
                f" {pace:.3f} s each, {left / 60:.1f} min left",
                flush=True,
            )
