"""Few-step checkpoints and LoRAs, and the settings that they were trained for.

A file is known by its digest, by the title in its metadata (`modelspec.title`,
github.com/Stability-AI/ModelSpec, else kohya's `ss_output_name`), or by its name. The patterns are
strict, so that a LoRA for lightning bolts does not count as a Lightning LoRA.

| kind | source of the settings |
|---|---|
| LCM | arXiv 2311.05556; a UNet with embedded guidance: arXiv 2310.04378 and its model card |
| TCD | arXiv 2402.19159 |
| DMD2 | arXiv 2405.14867, and its model card: LCM's sampler, no guidance |
| SDXL-Lightning | arXiv 2402.13929, and its model card: Euler, trailing timesteps, no guidance |
| Hyper-SD | arXiv 2404.13686, its model card: DDIM, trailing; "CFG" in the title keeps guidance |
| SDXL Turbo | its model card: ancestral Euler, trailing, no guidance |
| few-step | `miniature/few_step.py`: Euler, trailing, no guidance |
| merges with Turbo or Lightning | DreamShaper XL's model card: DPM++ SDE Karras, guidance 2 |
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from overpaint.models.library.entry import TITLE_KEYS

if TYPE_CHECKING:
    from overpaint.models.adapters import Adapters
    from overpaint.models.model import Model
    from overpaint.request import Request

FewStepSettings = tuple[str, dict[str, Any]]
"""The name of a kind, and fields of `Request`."""


@dataclass(frozen=True)
class FewStepKind:
    """A kind of few-step checkpoints and LoRAs.

    Attributes:
        name: The name of the kind.
        words: A pattern for its title, in lower case with single spaces.
        sampler: A name in `registry.SAMPLERS`.
        steps: The number of steps for a title without a number.
        schedule: A name in `registry.SCHEDULES`. Most kinds were distilled from steps that start
            at pure noise.
        guidance: The guidance scale.
    """

    name: str
    words: str
    sampler: str
    steps: int
    schedule: str = "trailing"
    guidance: float = 1.0


MAX_TITLE_CHARS = 300
"""Characters of a title or file name that are searched: a pattern looks ahead at each word."""

FEW_STEP_KINDS = (
    FewStepKind("DMD2", r"dmd 2", "lcm", 4),
    FewStepKind("SDXL-Lightning", r"sd ?xl lightning|lightning (?=.*\bsteps?\b)", "euler", 4),
    FewStepKind("Hyper-SD", r"hyper sd ?(xl)?|hyper (?=.*\bsteps?\b)", "ddim", 8),
    FewStepKind("TCD", r"tcd", "tcd", 4),
    FewStepKind("LCM", r"lcm", "lcm", 4),
    FewStepKind("SDXL Turbo", r"sd ?xl turbo", "euler_a", 4),
    FewStepKind("few-step", r"few step", "euler", 4),
)
"""The preset "turbo" chooses among several LoRAs in this order."""

FEW_STEP_MERGE = FewStepKind(
    "Turbo or Lightning", r"turbo|lightning", "dpmpp_sde", 6, "karras", 2.0
)
"""Checkpoints that were merged with SDXL Turbo or SDXL-Lightning. LoRAs do not count: in their
titles, these words can be subjects."""

EMBEDDED_LCM_GUIDANCE = 8.0
"""The guidance scale of LCM-SDXL's model card, for UNets that take it as an input."""


@dataclass(frozen=True)
class KnownFile:
    """A few-step file whose name or metadata may not show its kind.

    Attributes:
        title: Its published name, which has the words of its kind.
        native_size: The side in pixels of its training pictures, if SDXL's config has another.
    """

    title: str
    native_size: int | None = None


KNOWN_FILES: Mapping[str, KnownFile] = {
    "a764e6859b6e04047cd761c08ff0cee96413a8e004c9f07707530cd776b19141": KnownFile("LCM LoRA SDXL"),
    "bf56cf2657efb15e465d81402ed481d1e11c4677e4bcce1bc11fe71ad8506b79": KnownFile(
        "SDXL Lightning 4step LoRA"
    ),
    "e869ac7d6942cb327d68d5ed83a40447aadf20e0c3358d98b2cc9e270db0da26": KnownFile(
        "SDXL Turbo", native_size=512
    ),
    "4496b36d48bfd7cfe4e5dbce3485db567bcefa2bef7238d290dbd45612125083": KnownFile(
        "DreamShaper XL Turbo 8 steps"
    ),
}
"""Published files by their digests."""


def find_few_step_settings(
    metadata: Mapping[str, str],
    names: Iterable[str] = (),
    sha256: str = "",
    *,
    merges: bool = False,
) -> FewStepSettings | None:
    """Find the settings for a few-step file.

    Args:
        metadata: The metadata in its header.
        names: The names of the file.
        sha256: Its digest.
        merges: Whether `FEW_STEP_MERGE` counts.

    Returns:
        The kind's name and fields of `Request`, or None for other files.
    """
    known = KNOWN_FILES.get(sha256)
    title = next((metadata[key] for key in TITLE_KEYS if metadata.get(key)), "")
    for text in (known.title if known else "", title, *names):
        pieces = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", text[:MAX_TITLE_CHARS])
        words = " ".join(pieces).lower()
        for kind in (*FEW_STEP_KINDS, *((FEW_STEP_MERGE,) if merges else ())):
            if re.search(rf"\b({kind.words})\b", words):
                return kind.name, _make_fields(kind, words)
    return None


def _make_fields(kind: FewStepKind, words: str) -> dict[str, Any]:
    said = re.search(r"\b(\d{1,2}) steps?\b", words)
    fields: dict[str, Any] = {
        "sampler": kind.sampler,
        "schedule": kind.schedule,
        "num_inference_steps": max(1, int(said[1])) if said else kind.steps,
    }
    if not re.search(r"\bcfg\b", words):
        fields["guidance_scale"] = kind.guidance
    return fields


def find_model_settings(model: "Model") -> FewStepSettings | None:
    """Find the settings for a few-step checkpoint, or for a few-step UNet in its own file."""
    if unet := model.parts.get("unet"):
        found = find_few_step_settings({}, [unet.name], unet.sha256, merges=True)
    else:
        name = PurePath(model.name).name  # of a path or a hub id
        found = find_few_step_settings(model.metadata, [name], model.sha256, merges=True)
    if model.guidance_width:
        [lcm] = (kind for kind in FEW_STEP_KINDS if kind.name == "LCM")
        _, fields = found or ("", _make_fields(lcm, ""))
        return "LCM", fields | {"sampler": "lcm", "guidance_scale": EMBEDDED_LCM_GUIDANCE}
    return found


def apply_few_step_settings(
    request: "Request", adapters: "Adapters", model: "Model | None" = None
) -> tuple["Request", str | None]:
    """Set the unset fields of a request as its few-step LoRA or checkpoint requires.

    Args:
        request: The request. Fields that it sets keep their values.
        adapters: Its LoRAs. The first few-step LoRA with a positive scale counts.
        model: Its checkpoint, which counts without such a LoRA.

    Returns:
        The request, and a notice if fields changed.
    """
    for adapter in adapters:
        lora = adapter.lora
        if adapter.scale <= 0:
            continue
        if found := find_few_step_settings(lora.metadata, (lora.file, lora.name), lora.sha256):
            return _set_fields(request, adapter.name, *found)
    if model is not None and (found := find_model_settings(model)):
        return _set_fields(request, model.name, *found)
    return request, None


def _set_fields(
    request: "Request", name: str, kind: str, fields: dict[str, Any]
) -> tuple["Request", str | None]:
    unset = [field for field in fields if field not in request.model_fields_set]
    if not unset:
        return request, None
    taken = ", ".join(f"{field} {fields[field]}" for field in unset)
    return request.fill_unset(fields), f"{name} is for few steps ({kind}), so it takes {taken}."
