"""Constructors of requests and their parts take what Python programs have."""

import ast
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import BaseModel

import overpaint
from overpaint.errors import PictureError, RequestError
from overpaint.imaging import codec
from overpaint.picture import Picture
from overpaint.request import Request
from overpaint.request.parts import Control, Lora

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
PICTURE = codec.read_picture(PIXELS)
SOURCE = Path(overpaint.__file__).parent


def sources(folder: Path) -> dict[str, Any]:
    path = folder / "a.png"
    path.write_bytes(PICTURE.data)
    return {
        "path": path,
        "text": str(path),
        "bytes": PICTURE.data,
        "file": BytesIO(PICTURE.data),
        "Pillow": Image.fromarray(PIXELS),
        "array": PIXELS,
        "floats": PIXELS / 255,
        "tensor": torch.from_numpy(PIXELS).permute(2, 0, 1),
        "picture": PICTURE,
    }


def pixels(picture: Picture | None) -> Any:
    assert picture
    return np.asarray(codec.decode(picture))


@pytest.mark.parametrize("kind", sources(Path("/tmp")))
def test_every_picture_field_takes_every_source(kind: str, tmp_path: Path) -> None:
    source = sources(tmp_path)[kind]
    request = Request(
        image=source,
        mask=source,
        controls=[
            Control(kind="canny", image=source, mask=source),
            Control(kind="depth", hint=source),
        ],
    )
    assert len(request.pictures) == 5
    assert all(np.array_equal(pixels(picture), PIXELS) for picture in request.pictures)


def test_control_as_a_dict_takes_every_source(tmp_path: Path) -> None:
    for source in sources(tmp_path).values():
        controls: Any = [{"kind": "canny", "image": source, "options": {"low": np.int16(9)}}]
        (control,) = Request(image=PICTURE, controls=controls).controls
        assert np.array_equal(pixels(control.image), PIXELS)
        assert control.options == {"low": 9}


def test_wrong_picture_names_its_field() -> None:
    wrong: Any = 5
    with pytest.raises(PictureError, match=r"^mask is 5, which is not a picture"):
        Request(image=PICTURE, mask=wrong)
    with pytest.raises(PictureError, match=r"^hint has the shape \[9, 9, 9\]"):
        Control(kind="canny", hint=np.zeros((9, 9, 9)))
    with pytest.raises(PictureError, match=r"none\.png: no such file"):
        Control(kind="canny", image="none.png")


def test_numbers_of_numpy_and_torch_are_plain_numbers() -> None:
    plain = Request(
        image=PICTURE,
        seed=7,
        width=64,
        strength=0.5,
        num_images=2,
        mask_invert=False,
        extend=(8, 0, 8, 0),
        guidance_interval=(0.25, 0.75),
        loras=(Lora(name="ink", scale=0.5, blocks={"mid_block": 2.0}),),
        upscale_to=None,
    )
    number: Any = torch.tensor
    array: Any = np.array
    false: Any = np.bool_(False)
    other = Request(
        image=PICTURE,
        seed=np.int64(7),  # pyright: ignore[reportArgumentType]
        width=np.uint16(64),  # pyright: ignore[reportArgumentType]
        strength=np.float32(0.5),  # pyright: ignore[reportArgumentType]
        num_images=number(2),
        mask_invert=false,
        extend=array([8, 0, 8, 0]),
        guidance_interval=(number(0.25), np.float64(0.75)),
        loras=[
            Lora(
                name="ink",
                scale=np.float16(0.5),  # pyright: ignore[reportArgumentType]
                blocks={"mid_block": number(2.0)},
            )
        ],
    )
    assert other == plain
    assert type(other.seed) is int
    assert json.loads(other.model_dump_json()) == json.loads(plain.model_dump_json())


@pytest.mark.parametrize("seed", [np.float64(7.5), np.int64(-1), True, np.bool_(True), "7"])
def test_numbers_stay_strict(seed: Any) -> None:
    with pytest.raises(RequestError, match=r"^seed: "):
        Request(seed=seed)


def test_lora_is_also_its_name_or_path() -> None:
    path: Any = Path("a") / "ink.safetensors"
    request = Request(loras=("ink", path, Lora(name="oil", scale=0.5)))
    assert request.loras == (
        Lora(name="ink"),
        Lora(name=str(path)),
        Lora(name="oil", scale=0.5),
    )


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"loras": ("",)}, "loras.0.name"),
        ({"loras": ("ink", "")}, "loras.1.name"),
        ({"loras": [{"scale": 1.0}]}, "loras.0.name"),
        ({"loras": [{"name": "ink", "scale": 99.0}]}, "loras.0.scale"),
        ({"loras": [{"name": "ink", "weight": 1.0}]}, "loras.0.weight"),
        ({"loras": [5]}, "loras.0"),
        ({"loras": "ink"}, "loras"),
        ({"controls": [{"kind": "cany"}]}, "controls.0.kind"),
        ({"controls": [{"kind": "canny", "scale": 9.0}]}, "controls.0.scale"),
        ({"controls": ["canny"]}, "controls.0"),
    ],
)
def test_error_of_a_part_names_its_place(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError) as error:
        Request(image=PICTURE, **fields)
    assert error.value.field == field


# Fields from elsewhere


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (Request, {"image": "{}"}),
        (Request, {"image": {"data": b"any"}, "mask": "{}"}),
        (Request, {"controls": [{"kind": "canny", "image": "{}"}]}),
        (Request, {"controls": [{"kind": "canny", "hint": "{}"}]}),
        (Control, {"kind": "canny", "mask": "{}"}),
    ],
)
def test_model_validate_opens_no_path_and_no_url(
    model: type[BaseModel], fields: Any, tmp_path: Path
) -> None:
    path = str(sources(tmp_path)["path"])

    def fill(value: Any) -> Any:
        match value:
            case dict():
                return {name: fill(inner) for name, inner in value.items()}
            case list():
                return list(map(fill, value))
            case _:
                return path if value == "{}" else value

    with pytest.raises(RequestError):
        model.model_validate(fill(fields))


@pytest.mark.parametrize("package", ["server", "provenance", "engine"])
def test_fields_of_others_never_reach_a_constructor(package: str) -> None:
    for path in (SOURCE / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                unpacked = [keyword for keyword in node.keywords if keyword.arg is None]
                made = node.func.id in {"Request", "Control", "Lora"}
                assert not (made and unpacked), f"{path}:{node.lineno}: use model_validate"
