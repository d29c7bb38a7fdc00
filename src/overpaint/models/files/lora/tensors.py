"""Make the change of a weight from the tensors that a LoRA file has for a module."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from overpaint.errors import CheckpointError
from overpaint.nn.lowrank import Dora, FullDelta, Loha, Lokr, LowRank, WeightDelta
from overpaint.nn.multiplicative import Boft, Glora, Ia3, Oft, compute_rotations

Tensors = Mapping[str, Tensor]
"""A module's tensors by role; see `keys.ROLES`."""

GetScale = Callable[[int | None], float]
"""Returns the scale of a module's delta for the rank of its factors, if it has one."""

Make = Callable[[str, Tensors, GetScale], WeightDelta]


def make_weight_change(stem: str, tensors: Tensors, get_scale: GetScale) -> WeightDelta | None:
    """Make the change of a module's weight; None if the tensors change only its bias.

    Raises:
        CheckpointError: A tensor is missing, or two have ranks that do not fit.
    """
    for role, make in MAKERS.items():
        if role in tensors or (role[-1] == "_" and any(n.startswith(role) for n in tensors)):
            change = make(stem, tensors, get_scale)
            break
    else:
        if _BIAS_ROLES & set(tensors):
            return None
        raise CheckpointError(f"{stem} has only {', '.join(tensors)}; the file is damaged")
    if "scalar" in tensors and isinstance(change, LowRank | Loha | Lokr):
        factor = tensors["scalar"].float().item()  # LyCORIS' `use_scalar`
        change = replace(change, alpha_over_rank=change.alpha_over_rank * factor)
    return Dora(change, tensors["magnitude"]) if "magnitude" in tensors else change


_BIAS_ROLES = {"diff_b", "b_norm", "up_bias"}


def make_bias_change(stem: str, tensors: Tensors, get_scale: GetScale) -> WeightDelta | None:
    """Make the change of a module's bias, or None without one."""
    for role in ("diff_b", "b_norm"):
        if role in tensors:
            return FullDelta(tensors[role].flatten())
    if "up_bias" in tensors:  # PEFT's `lora_bias`
        rank = _take(stem, tensors, "down")[0].shape[0]
        return FullDelta(tensors["up_bias"].flatten().float() * get_scale(rank))
    return None


def make_scale(tensors: Tensors, get_default: Callable[[int | None], float | None]) -> GetScale:
    """Return the function that gives a module's scale: its own α, else the default, else 1.

    The scale of OFT and BOFT is the bound of their rotations. LyCORIS and kohya store it divided
    by the number of outputs, as α; 0 stands for no bound.

    Args:
        tensors: The module's tensors.
        get_default: Returns the scale for a rank from the file's config, or None without one.
    """
    alpha = tensors["alpha"].float().flatten()[0].item() if "alpha" in tensors else None

    def get_scale(rank: int | None) -> float:
        if alpha is None:
            default = get_default(rank)
            return 1.0 if default is None else default
        if rank is None:
            return 1.0
        return alpha / rank

    def get_constraint(outputs: int | None) -> float:
        return (alpha or 0.0) * (outputs or 1)

    return get_constraint if "oft_blocks" in tensors else get_scale


def _take(stem: str, tensors: Tensors, *names: str) -> list[Tensor]:
    if missing := [name for name in names if name not in tensors]:
        raise CheckpointError(f"{stem} has no {missing[0]}; the file is damaged")
    return [tensors[name] for name in names]


def _make_full(stem: str, tensors: Tensors, get_scale: GetScale) -> WeightDelta:
    return FullDelta(tensors["diff"] if "diff" in tensors else tensors["w_norm"])


def _make_low_rank(stem: str, tensors: Tensors, get_scale: GetScale) -> WeightDelta:
    down, up = _take(stem, tensors, "down", "up")
    if min(down.ndim, up.ndim) < 2:
        raise CheckpointError(f"{stem} has factors with one axis; the file is damaged")
    rank = down.shape[0]
    if up.shape[1] != rank or rank > max(up.shape[0], down[0].numel()):
        raise CheckpointError(
            f"{stem} has rank {up.shape[1]} up and {rank} down, for "
            f"{down[0].numel()} inputs and {up.shape[0]} outputs; the file is damaged"
        )
    return LowRank(down, up, get_scale(rank), tensors.get("mid"))


def _make_loha(stem: str, tensors: Tensors, get_scale: GetScale) -> WeightDelta:
    names = [f"hada_w{i}_{x}" for i in (1, 2) for x in "ab"]
    first_b, first_a, second_b, second_a = _take(stem, tensors, *names)
    scale = get_scale(first_a.shape[0])
    cores = (tensors.get(f"hada_t{i}") for i in (1, 2))
    one, two = zip(((first_b, first_a), (second_b, second_a)), cores, strict=True)
    return Loha((*one[0], one[1]), (*two[0], two[1]), scale)


def _make_lokr(stem: str, tensors: Tensors, get_scale: GetScale) -> WeightDelta:
    parts: list[tuple[Tensor, ...]] = []
    ranks: list[int] = []
    for i in (1, 2):
        if f"lokr_w{i}" in tensors:
            parts.append((tensors[f"lokr_w{i}"],))
            continue
        b, a = _take(stem, tensors, f"lokr_w{i}_a", f"lokr_w{i}_b")
        core = tensors.get("lokr_t2") if i == 2 else None
        parts.append((b, a) if core is None else (b, a, core))
        ranks.append(a.shape[0])
    return Lokr(parts[0], parts[1], get_scale(ranks[-1] if ranks else None))


def _make_glora(stem: str, tensors: Tensors, get_scale: GetScale) -> WeightDelta:
    a1, a2, b1, b2 = _take(stem, tensors, "a1", "a2", "b1", "b2")
    if min(t.ndim for t in (a1, a2, b1, b2)) < 2:
        raise CheckpointError(f"{stem} has factors with one axis; the file is damaged")
    if a2.shape[0] > a2.shape[1]:  # LyCORIS before 2.0 stored the pairs the other way round
        a1, a2, b1, b2 = a2, a1, b2, b1
    return Glora((a1, a2), (b1, b2), get_scale(a1.shape[1]))


def _make_oft(stem: str, tensors: Tensors, get_scale: GetScale) -> WeightDelta:
    blocks, rescale = tensors["oft_blocks"], tensors.get("rescale")
    if blocks.ndim not in (3, 4) or blocks.shape[-1] != blocks.shape[-2]:
        raise CheckpointError(f"{stem} has no square blocks; the file is damaged")
    outputs = math.prod(blocks.shape[-3:-1])
    rotations = compute_rotations(blocks, get_scale(outputs))
    return (Oft if blocks.ndim == 3 else Boft)(rotations, rescale)


def _make_ia3(stem: str, tensors: Tensors, get_scale: GetScale) -> WeightDelta:
    factors, on_input = _take(stem, tensors, "factors", "on_input")
    return Ia3(factors, bool(on_input.flatten()[0].item()))


MAKERS: dict[str, Make] = {
    "diff": _make_full,
    "w_norm": _make_full,
    "down": _make_low_rank,
    "up": _make_low_rank,
    "hada_": _make_loha,
    "lokr_": _make_lokr,
    "a1": _make_glora,
    "a2": _make_glora,
    "oft_blocks": _make_oft,
    "factors": _make_ia3,
    "on_input": _make_ia3,
}
"""The maker of a delta, by a role, or the start of roles, that only this kind has."""
