"""Presets: settings of requests that want less work for a different picture.

`registry.PRESETS` has their fields. "turbo" also needs a few-step LoRA or checkpoint, which has its
own settings; see `few_step`.
"""

from typing import TYPE_CHECKING

from overpaint.errors import RequestError
from overpaint.models.addons import AddonLoader, Addons
from overpaint.models.few_step import (
    FEW_STEP_KINDS,
    apply_few_step_settings,
    find_few_step_settings,
    find_model_settings,
)
from overpaint.models.library.entry import LibraryEntry
from overpaint.models.library.index import MINIATURE
from overpaint.models.library.library import list_shipped
from overpaint.registry import PRESETS
from overpaint.request.parts import Lora

if TYPE_CHECKING:
    from overpaint.models.model import Model
    from overpaint.request import Request

KINDS_BY_PREFERENCE = [kind.name for kind in FEW_STEP_KINDS]


def settle_request(
    request: "Request", model: "Model", addon_loader: AddonLoader
) -> tuple["Request", Addons, list[str]]:
    """Load a request's add-ons, and set the fields that follow from its preset and from them.

    Args:
        request: The request. Fields that it sets keep their values.
        model: Its checkpoint.
        addon_loader: Loads the add-ons for the model.

    Returns:
        The request with its settings, its add-ons, and notices.

    Raises:
        RequestError: The preset "turbo" has no few-step LoRA.
        ModelError, DeviceError: See `AddonLoader.load`.
    """
    request = _add_preset_lora(request, model, addon_loader)
    addons = addon_loader.load(request)
    request, notice = apply_few_step_settings(request, addons.adapters, model)
    notices = [*addons.notices, *([notice] if notice else [])]
    return request.fill_unset(PRESETS[request.preset]), addons, notices


def _add_preset_lora(request: "Request", model: "Model", addon_loader: AddonLoader) -> "Request":
    """Add the few-step LoRA that the preset "turbo" needs.

    A request with a few-step LoRA, or to a few-step checkpoint, needs none. Of several, the first
    one in the order of `FEW_STEP_KINDS` and then of names counts.
    """
    if request.preset != "turbo" or find_model_settings(model):
        return request
    library = addon_loader.library
    named = [library.find(lora.name, "lora") for lora in request.loras if lora.scale > 0]
    if any(map(_find_kind, named)):
        return request
    shipped = list_shipped() if model.family.name.startswith(MINIATURE) else ()
    loras = [own for own in (*library.list_entries(), *shipped) if own.kind == "lora"]
    found = [(kind, entry) for entry in loras if (kind := _find_kind(entry))]
    if not found:
        raise RequestError(
            "preset",
            f"'turbo' needs a few-step LoRA or checkpoint, and {model.name} has no such LoRA. Add "
            "one, such as SDXL-Lightning's: overpaint models add FILE.",
        )
    _, best = min(found, key=lambda pair: (KINDS_BY_PREFERENCE.index(pair[0]), pair[1].name))
    return request.model_copy(update={"loras": (*request.loras, Lora(name=best.name))})


def _find_kind(entry: LibraryEntry) -> str | None:
    settings = find_few_step_settings(entry.metadata, (entry.file, entry.name), entry.sha256)
    return settings[0] if settings else None
