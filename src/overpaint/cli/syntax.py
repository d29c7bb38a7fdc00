"""The syntax of option values: sizes, lists of numbers, `--control`, `--lora` and `--option`."""

import re
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TextIO

from overpaint.errors import PictureError, RequestError
from overpaint.picture import Picture

STDIN = "-"
"""The path that means stdin."""


def read_picture(path: str) -> Picture:
    """Read a picture from a file, a URL, or stdin ("-").

    Raises:
        PictureError: it cannot be read, or stdin is a terminal.
    """
    from overpaint.imaging import codec  # imports numpy and Pillow

    if path != STDIN:
        return codec.read_picture(path)
    if sys.stdin.isatty():
        raise PictureError("Stdin is a terminal; send a picture to it, or give a file.")
    picture = Picture(data=_read_stdin(sys.stdin))
    with codec.open_upright(picture, "stdin"):
        return picture


@lru_cache(maxsize=1)
def _read_stdin(stdin: TextIO) -> bytes:
    """Return all bytes of stdin, which can be read once: a mask serves several pictures."""
    return stdin.buffer.read()


def read_hint_source(kind: str, path: str) -> Picture:
    """Read the source of a control image: a picture, or the JSON keypoints of a pose."""
    if kind == "pose" and path.lower().endswith(".json"):
        from overpaint.imaging import codec

        return codec.read_keypoints(path)
    return read_picture(path)


def parse_numbers(field: str, text: str) -> tuple[float, ...]:
    """Parse numbers that are separated by commas.

    Raises:
        RequestError: the text is not a list of numbers.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise RequestError(
            field, f"{text!r} is not a list of numbers. Write it like 0.2,0.8."
        ) from None


def parse_interval(text: str) -> dict[str, Any]:
    """Parse START,END of `--guidance-interval`."""
    return {"guidance_interval": parse_numbers("guidance_interval", text)}


SIZE_PATTERN = re.compile(r"(\d{1,9})[xX×](\d{1,9})")
"""WIDTHxHEIGHT in pixels."""


def parse_size(text: str) -> dict[str, Any]:
    """Parse WIDTHxHEIGHT, "native" or "keep".

    Raises:
        RequestError: the text is not a size.
    """
    if text in {"native", "keep"}:
        return {"size": text, "width": None, "height": None}
    if size := SIZE_PATTERN.fullmatch(text):
        return {"size": "native", "width": int(size[1]), "height": int(size[2])}
    raise RequestError("size", f"{text!r} is not a size. Give WIDTHxHEIGHT, native or keep.")


def parse_upscale_to(text: str) -> dict[str, Any]:
    """Parse WIDTHxHEIGHT of `--upscale-to`.

    Raises:
        RequestError: the text is not a size.
    """
    if size := SIZE_PATTERN.fullmatch(text):
        return {"upscale_to": (int(size[1]), int(size[2]))}
    raise RequestError("upscale_to", f"{text!r} is not a size. Give WIDTHxHEIGHT.")


def parse_truncate(truncate: bool) -> dict[str, Any]:
    """Return the field of `--truncate-steps` and `--exact-steps`."""
    return {"steps": "truncate" if truncate else "exact"}


def parse_mask(path: str) -> dict[str, Any]:
    """Read the picture of `--mask`."""
    return {"mask": read_picture(path)}


def parse_extend(text: str) -> dict[str, Any]:
    """Parse SIDE=PIXELS,… of `--extend`.

    Raises:
        RequestError: a part is not like left=256, or a side is repeated.
    """
    sides: dict[str, int] = {}
    for part in text.split(","):
        side = re.fullmatch(r"\s*(left|top|right|bottom)\s*=\s*(\d{1,6})\s*", part)
        if not side:
            raise RequestError(
                "extend",
                f"{part!r} is not a side and a number of pixels. Write it like left=256 or "
                "left=256,top=128.",
            )
        if side[1] in sides:
            raise RequestError("extend", f"{text!r} names {side[1]} twice. Give each side once.")
        sides[side[1]] = int(side[2])
    return {"extend": tuple(sides.get(side, 0) for side in ("left", "top", "right", "bottom"))}


def parse_inpaint(text: str) -> dict[str, Any]:
    """Parse a way to paint a mask: "plain", or "langevin:COUNT".

    Raises:
        RequestError: it has another form.
    """
    method, _, count = text.partition(":")
    if text == "plain":
        return {"langevin_steps": 0}
    if method != "langevin" or not count.isdecimal():
        raise RequestError("langevin_steps", f"{text!r} is neither plain nor langevin:COUNT.")
    return {"langevin_steps": int(count)}


def parse_crop(text: str) -> dict[str, Any]:
    """Parse "auto", "off" or a number of pixels."""
    return {"crop": int(text) if re.fullmatch(r"\d{1,6}", text) else text}


def parse_options(texts: Sequence[str], field: str = "options") -> dict[str, float]:
    """Parse options of a preprocessor, NAME=NUMBER each.

    Raises:
        RequestError: a text has another form.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise RequestError(
                field, f"{text!r} is not a name and a number. Write it like low=50."
            ) from None
    return found


def parse_loras(texts: Sequence[str]) -> dict[str, Any]:
    """Parse LoRAs: NAME or NAME:SCALE, then :text=SCALE and :BLOCK=FACTOR.

    Raises:
        RequestError: a text has another form.
    """
    return {"loras": tuple(_parse_lora(text, f"loras.{i}") for i, text in enumerate(texts))}


def _parse_lora(text: str, field: str) -> dict[str, Any]:
    # A path can hold colons, so the scale and the options are read from the end.
    end = re.search(r"(?::[^:/\\]*)*$", text)
    start = end.start() if end else len(text)
    if re.fullmatch(r"[A-Za-z]", text[:start]):  # a drive of Windows
        start = text.find(":", start + 1) if ":" in text[start + 1 :] else len(text)
    name, rest = text[:start], text[start:].split(":")[1:]
    lora: dict[str, Any] = {"name": name}
    if rest and "=" not in rest[0]:
        numbers = parse_numbers(field, text_of_scale := rest.pop(0))
        if len(numbers) != 1:
            raise RequestError(field, f"{text_of_scale!r} is not a scale. Write it like 0.8.")
        lora["scale"] = numbers[0]
    scales = parse_options(rest, field)
    if "text" in scales:
        lora["text_scale"] = scales.pop("text")
    return lora | ({"blocks": scales} if scales else {})


_SCALE = re.compile(r"\d+(\.\d*)?|\.\d+")
_RANGE = re.compile(r"(\d*\.?\d+)-(\d*\.?\d+)")
_OPTION = re.compile(r"([a-z_]+)=(.+)")


def parse_controls(texts: Sequence[str]) -> dict[str, Any]:
    """Parse controls: KIND, KIND=PICTURE or KIND@HINT, then options after colons.

    An option is a scale (0.7), a range (0-0.8), or NAME=VALUE. The name is net, estimator, mask,
    weighting or an option of the preprocessor.

    Raises:
        RequestError: a text has another form.
        PictureError: a picture cannot be read.
    """
    controls = (_parse_control(text, f"controls.{i}") for i, text in enumerate(texts))
    return {"controls": tuple(controls)}


def _parse_control(text: str, field: str) -> dict[str, Any]:
    start = re.match(r"([a-z]+)([=@:]|$)", text)
    if not start:
        raise RequestError(
            field, f"{text!r} is not a control. Write it like canny=PICTURE:0.7 or canny@HINT."
        )
    control: dict[str, Any] = {"kind": start[1], "options": {}}
    parts = text[start.end() :].split(":")
    path_parts = 0 if start[2] in (":", "") else 1
    # Options are read from the end, because the path may contain colons.
    while len(parts) > path_parts and (own := _parse_control_option(parts[-1], field)) is not None:
        control["options"] |= own.pop("options", {})
        control |= own
        parts.pop()
    path = ":".join(parts)
    if path and path_parts:
        control["image" if start[2] == "=" else "hint"] = read_hint_source(start[1], path)
    elif path or path_parts:
        raise RequestError(
            field, f"{text!r}: {path or text[-1]!r} is not a scale, a range or an option."
        )
    return control


def _parse_control_option(text: str, field: str) -> dict[str, Any] | None:
    """Return the fields that an option sets, or None if the text is not an option."""
    if _SCALE.fullmatch(text):
        return {"scale": float(text)}
    if interval := _RANGE.fullmatch(text):
        return {"start": float(interval[1]), "end": float(interval[2])}
    if not (named := _OPTION.fullmatch(text)):
        return {} if text == "" else None
    name, value = named.groups()
    match name:
        case "net" | "estimator" | "weighting":
            return {name: value}
        case "mask":
            return {"mask": read_picture(value)}
        case _:
            return {"options": parse_options([f"{name}={value}"], f"{field}.options")}
