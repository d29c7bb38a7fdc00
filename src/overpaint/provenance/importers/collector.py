"""The settings that importers return, and the collector that they share."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from overpaint.errors import RequestError, quote_value
from overpaint.picture import Picture
from overpaint.registry import resolve_sampler, resolve_schedule
from overpaint.request import Request
from overpaint.request.fields import MAX_LORAS, MAX_PROMPT_CHARS
from overpaint.request.foreign_syntax import describe_foreign_syntax
from overpaint.request.lora_tags import take_lora_tags
from overpaint.request.parts import Lora

MAX_LOST_VALUE_CHARS = 100
"""Characters of a setting's value in a note."""

PROMPT_FIELDS = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")
_FILE_SUFFIX = re.compile(r"\.(safetensors|ckpt|pt|pth|bin)$", re.IGNORECASE)


@dataclass(frozen=True)
class ImportedSettings:
    """Settings found in a picture.

    Attributes:
        program: the program that made it, such as "overpaint", "A1111" or "ComfyUI".
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


def read_whole_number(value: Any) -> int:
    """Return a whole number or its text, such as 20, "20" or "20.0", as an integer.

    Raises:
        TypeError, ValueError, OverflowError: the value is another one.
    """
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,20}\.0+\s*", value):
        value = value.partition(".")[0]
    return int(value)


@dataclass
class SettingsCollector:
    """Collect fields and notes while a text is read."""

    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    notes: list[str] = field(default_factory=list[str])
    _loras: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])

    def put(self, name: str, value: Any) -> bool:
        """Set a field, or add a note that says why its value is refused.

        Returns:
            True if the field is set.
        """
        if problem := _find_problem(name, value):
            self.notes.append(f"left out: {problem}")
            return False
        self.fields[name] = value
        return True

    def put_number(self, name: str, value: Any, kind: Callable[[Any], int | float] = float) -> None:
        """Set a field from a number or its text, or add a note that says why it is refused."""
        try:
            number = kind(value)
        except (TypeError, ValueError, OverflowError):
            number = None
        lossless = number is not None and (isinstance(value, str) or number == value)
        if lossless and not isinstance(value, bool):
            self.put(name, number)
        else:
            self.notes.append(f"left out: {name}: {quote_value(value)} is not a number.")

    def put_numbers(
        self, given: dict[str, Any], names: dict[str, tuple[str, Callable[[Any], int | float]]]
    ) -> None:
        """Set fields from the given numbers.

        Args:
            given: settings of a program; those that are read are removed.
            names: the field and the kind of number for the program's name of each setting.
        """
        for key, (name, kind) in names.items():
            if key in given:
                self.put_number(name, given.pop(key), kind)

    def put_prompt(
        self, name: str, text: Any, translate: Callable[[str], str] | None = None
    ) -> None:
        """Set a prompt.

        Without it, the picture would show something else. So characters that no prompt can hold
        are removed, and tags are not checked: if `Request` refuses one, the error names it.

        Args:
            name: the field.
            text: the prompt; other values are left out with a note.
            translate: translates the prompt, which is cut before and after it.
        """
        if not isinstance(text, str):
            self.notes.append(f"left out: {name}: {quote_value(text)} is not a text.")
            return
        text = self.cut_prompt(name, text)
        if translate:
            text = self.cut_prompt(name, translate(text))
        self.fields[name] = text

    def cut_prompt(self, name: str, text: str) -> str:
        """Return the characters of a prompt that `Request` accepts; a note says if it is cut."""
        cut = len(text) > MAX_PROMPT_CHARS
        text = text[:MAX_PROMPT_CHARS].replace("\0", "")
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        note = f"{name}: only its first {MAX_PROMPT_CHARS:,} characters are kept."
        if cut and note not in self.notes:
            self.notes.append(note)
        return text

    def put_sampler(self, sampler: str, schedule: str | None) -> None:
        """Set the sampler, and the schedule that is given or that the sampler's name implies."""
        try:
            self.fields["sampler"], implied = resolve_sampler(sampler)
        except RequestError:
            self.notes.append(f"left out: Overpaint has no sampler {quote_value(sampler)}.")
            implied = None
        if schedule := schedule or implied:
            try:
                self.fields["schedule"] = resolve_schedule(schedule)
            except RequestError:
                self.notes.append(f"left out: Overpaint has no schedule {quote_value(schedule)}.")

    def add_lora(self, file: Any, scale: Any, text_scale: Any = None) -> bool:
        """Add a LoRA; one that is given again is added to it.

        Args:
            file: its name or file; folders and the suffix are removed.
            scale: the factor for the UNet, as a number or its text.
            text_scale: the factor for the text encoders; the same if None.

        Returns:
            True if the LoRA is valid.
        """
        try:
            name, scales = strip_file_name(file), [float(scale)]
            scales.append(scales[0] if text_scale is None else float(text_scale))
            if earlier := self._loras.get(name):
                before = earlier["scale"], earlier.get("text_scale", earlier["scale"])
                scales = [a + b for a, b in zip(scales, before, strict=True)]
            lora: dict[str, Any] = {"name": name, "scale": scales[0]}
            if scales[1] != scales[0]:
                lora["text_scale"] = scales[1]
            Lora.model_validate(lora)
        except (RequestError, AttributeError, TypeError, ValueError, OverflowError):
            self.notes.append(
                f"left out: LoRA {quote_value(file)} with the scale {quote_value(scale)}."
            )
            return False
        self._loras[name] = lora
        return True

    def note_lost(self, what: str, names: Iterable[str]) -> None:
        """Add a note that names the settings without a counterpart, if there are any."""
        shown = [
            name if len(name) <= MAX_LOST_VALUE_CHARS else f"{name[:MAX_LOST_VALUE_CHARS]}…"
            for name in (" ".join(name.split()) for name in names)
        ]
        if shown:
            self.notes.append(f"{what} not carried over: {', '.join(shown)}.")

    def note_lost_settings(self, given: dict[str, Any], without_effect: Iterable[str]) -> None:
        """Add a note that names the remaining settings of a program and their values.

        Args:
            given: the settings that no field has.
            without_effect: names of settings that do not change the picture.
        """
        idle = set(without_effect)
        self.note_lost(
            "settings",
            [
                f"{key} {value if isinstance(value, str) else quote_value(value)}"
                for key, value in given.items()
                if key not in idle and value != "None" and not is_empty(value)
            ],
        )

    def finish(self, program: str, model: Any = None) -> ImportedSettings:
        """Return the collected settings."""
        self._put_loras()
        if foreign := describe_foreign_syntax(map(self.fields.get, PROMPT_FIELDS)):
            self.notes.append(foreign)
        named = model if isinstance(model, str) and model else None
        return ImportedSettings(program, self.fields, named, tuple(self.notes))

    def _put_loras(self) -> None:
        try:
            _, tagged = take_lora_tags(self.fields.get("prompt", ""))
        except RequestError:  # `Request` names the tag
            tagged = ()
        names = {lora["name"] for lora in tagged}  # The program lists the LoRAs of tags again.
        loras = [lora for lora in self._loras.values() if lora["name"] not in names]
        room = max(MAX_LORAS - len(tagged), 0)
        if loras[:room]:
            self.fields["loras"] = tuple(loras[:room])
        self.note_lost("LoRAs", [lora["name"] for lora in loras[room:]])


def _find_problem(name: str, value: Any) -> str | None:
    """Return why `Request` refuses a value of a field, or None."""
    try:
        # `Request` refuses strength and fit without an image, so every trial has one.
        Request.model_validate({"image": Picture(data=b"any"), name: value})
    except RequestError as error:
        return str(error)
    return None


def is_empty(value: Any) -> bool:
    """Return True for a setting that is not set; 0 is set."""
    return value is None or value is False or value in ("", [], {})


def strip_file_name(file: str) -> str:
    """Return the name of a model's file without folders and suffix."""
    return _FILE_SUFFIX.sub("", re.split(r"[/\\]", file.strip())[-1])


def parse_json_object(text: str) -> dict[str, Any] | None:
    """Parse a JSON object; return None if the text is not one."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def join_texts(parts: Sequence[Any], separator: str) -> str:
    """Join the parts that are texts and not empty, each once."""
    return separator.join(dict.fromkeys(p for p in parts if isinstance(p, str) and p.strip()))
