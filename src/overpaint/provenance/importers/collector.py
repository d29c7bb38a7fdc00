"""The settings that importers return, and the collector that they share."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from overpaint.errors import RequestError
from overpaint.picture import Picture
from overpaint.registry import resolve_sampler, resolve_schedule
from overpaint.request import Request

PROMPT_FIELDS = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")


@dataclass(frozen=True)
class ImportedSettings:
    """Settings found in a picture.

    Attributes:
        program: the program that made it: "overpaint", "A1111", "ComfyUI" or "InvokeAI".
        fields: names and values for `Request`, each valid alone. Only a prompt can hold a tag
            that `Request` refuses.
        model: the name that the program gives the checkpoint.
        notes: settings that have no counterpart, in sentences.
        record: the whole Overpaint record, if Overpaint made the picture.
    """

    program: str
    fields: dict[str, Any]
    model: str | None = None
    notes: tuple[str, ...] = ()
    record: dict[str, Any] | None = field(default=None, repr=False)


@dataclass
class SettingsCollector:
    """Collect fields and notes while a text is read."""

    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    notes: list[str] = field(default_factory=list[str])

    def put(self, name: str, value: Any) -> None:
        """Set a field, or add a note that says why its value is refused.

        A prompt is set unchecked: without it, the picture would show something else. If `Request`
        refuses a tag in it, the error names the tag.
        """
        if name in PROMPT_FIELDS and isinstance(value, str):
            self.fields[name] = value
            return
        try:
            # `Request` refuses strength and fit without an image, so every trial has one.
            Request.model_validate({"image": Picture(data=b"any"), name: value})
        except RequestError as error:
            self.notes.append(f"left out: {error}")
        else:
            self.fields[name] = value

    def put_number(self, name: str, text: str, kind: Callable[[str], Any] = float) -> None:
        """Set a field from a number in text, or add a note that says why it is refused."""
        try:
            self.put(name, kind(text))
        except ValueError:
            self.notes.append(f"left out: {name}: {text!r} is not a number.")

    def put_sampler(self, sampler: str, schedule: str | None) -> None:
        """Set the sampler, and the schedule that is given or that the sampler's name implies."""
        try:
            self.fields["sampler"], implied = resolve_sampler(sampler)
        except RequestError:
            self.notes.append(f"left out: Overpaint has no sampler {sampler!r}.")
            implied = None
        if schedule := schedule or implied:
            try:
                self.fields["schedule"] = resolve_schedule(schedule)
            except RequestError:
                self.notes.append(f"left out: Overpaint has no schedule {schedule!r}.")

    def note_lost(self, what: str, names: "list[str]") -> None:
        """Add a note that names the settings without a counterpart, if there are any."""
        if names:
            self.notes.append(f"{what} not carried over: {', '.join(names)}.")

    def finish(self, program: str, model: str | None) -> ImportedSettings:
        """Return the collected settings."""
        return ImportedSettings(program, self.fields, model, tuple(self.notes))


def parse_json_object(text: str) -> dict[str, Any] | None:
    """Parse a JSON object; return None if the text is not one."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None
