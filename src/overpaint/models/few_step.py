"""Few-step LoRAs and the settings that they were trained for.

The title in a LoRA's metadata identifies its kind: `modelspec.title`
(github.com/Stability-AI/ModelSpec), else kohya's `ss_output_name`. The file's name does not count.
The patterns are strict, so that a LoRA for lightning bolts does not count as a Lightning LoRA.

| kind | source of the settings |
|---|---|
| LCM | arXiv 2311.05556 |
| TCD | arXiv 2402.19159 |
| SDXL-Lightning | arXiv 2402.13929, and its model card: Euler, trailing timesteps, no guidance |
| Hyper-SD | arXiv 2404.13686, its model card: DDIM, trailing; "CFG" in the title keeps guidance |
| SDXL Turbo | its model card: ancestral Euler, trailing, no guidance |
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from overpaint.models.library.entry import TITLE_KEYS

if TYPE_CHECKING:
    from overpaint.models.adapters import Adapters
    from overpaint.request import Request


@dataclass(frozen=True)
class FewStepKind:
    """A kind of few-step LoRA.

    Attributes:
        name: The name of the kind.
        words: A pattern for its title, in lower case with single spaces.
        sampler: A name in `registry.SAMPLERS`.
        steps: The number of steps for a title without a number.
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
"""The schedule for all kinds: they were distilled from steps that start at pure noise."""


def find_few_step_settings(metadata: Mapping[str, str]) -> tuple[str, dict[str, Any]] | None:
    """Find the settings for a few-step LoRA in its metadata.

    Returns:
        The kind's name and fields of `Request`, or None for other LoRAs.
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
    """Set the unset fields of a request as its few-step LoRA requires.

    Args:
        request: The request. Fields that it sets keep their values.
        adapters: Its LoRAs. The first few-step LoRA with a positive scale counts.

    Returns:
        The request, and a notice if fields changed.
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
