"""LoRAs that let a model paint in a few steps, and the settings that they were made for.

What a LoRA is told by is what its metadata calls it (`modelspec.title` of
github.com/Stability-AI/ModelSpec, else kohya's `ss_output_name`), never by the file's name. The
words are narrow: a LoRA of lightning bolts is no Lightning LoRA.

| kind | settings after |
|---|---|
| LCM | arXiv 2311.05556 |
| TCD | arXiv 2402.19159 |
| SDXL-Lightning | arXiv 2402.13929, and its model card: Euler, trailing timesteps, no guidance |
| Hyper-SD | arXiv 2404.13686, and its model card: DDIM, trailing; those called CFG keep guidance |
| SDXL Turbo | its model card: ancestral Euler, trailing, no guidance |
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from overpaint.models.adapters import Adapters
    from overpaint.request import Request


@dataclass(frozen=True)
class FewStepKind:
    """A way to paint in a few steps.

    Attributes:
        name: of the kind.
        words: a pattern of its name, in small letters with single spaces.
        sampler: of `names.SAMPLERS`.
        steps: where the name says no other number.
    """

    name: str
    words: str
    sampler: str
    steps: int


FEW_STEP_KINDS = (
    FewStepKind("LCM", r"lcm", "lcm", 4),
    FewStepKind("TCD", r"tcd", "tcd", 4),
    FewStepKind("SDXL-Lightning", r"sdxl lightning|lightning (?=.*\bsteps?\b)", "euler", 4),
    FewStepKind("Hyper-SD", r"hyper sd(xl)?|hyper (?=.*\bsteps?\b)", "ddim", 8),
    FewStepKind("SDXL Turbo", r"sdxl turbo", "euler_a", 4),
)
FEW_STEP_SCHEDULE = "trailing"
"""For all of them: they were distilled from steps that begin at pure noise."""

TITLE_KEYS = ("modelspec.title", "ss_output_name")


def find_few_step_settings(metadata: Mapping[str, str]) -> tuple[str, dict[str, Any]] | None:
    """What a LoRA's metadata asks for: the kind's name, and fields of `Request`.

    None where it names no such kind.
    """
    title = next((metadata[key] for key in TITLE_KEYS if metadata.get(key)), "")
    words = " ".join(re.findall(r"[a-z]+|\d+", title.lower()))
    for kind in FEW_STEP_KINDS:
        if not re.search(rf"\b({kind.words})\b", words):
            continue
        said = re.search(r"\b(\d{1,2}) steps?\b", words)
        fields: dict[str, Any] = {
            "sampler": kind.sampler,
            "schedule": FEW_STEP_SCHEDULE,
            "num_inference_steps": max(1, int(said[1])) if said else kind.steps,
        }
        if not re.search(r"\bcfg\b", words):
            fields["guidance_scale"] = 1.0
        return kind.name, fields
    return None


def apply_few_step_settings(
    request: "Request", adapters: "Adapters"
) -> tuple["Request", str | None]:
    """The request with what it leaves unset as its LoRAs were made for, and what to say of it.

    Args:
        request: whose own settings win, field by field.
        adapters: its LoRAs. The first one that is distilled and acts on the UNet counts.
    """
    for adapter in adapters:
        if adapter.scale <= 0 or not (found := find_few_step_settings(adapter.lora.metadata)):
            continue
        kind, fields = found
        unset = {k: v for k, v in fields.items() if k not in request.model_fields_set}
        if not unset:
            return request, None
        taken = ", ".join(f"{name} {value}" for name, value in unset.items())
        said = f"{adapter.lora.name} is for few steps ({kind}), so it takes {taken}."
        return request.model_copy(update=unset), said
    return request, None
