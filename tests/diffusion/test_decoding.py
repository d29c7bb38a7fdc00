"""A file is decoded once for a request, however many of its fields and stages use it."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from overpaint.diffusion.run import Run
from overpaint.imaging import canvas, codec
from overpaint.models.addons import Addons
from overpaint.models.controlnet import load_controlnet
from overpaint.models.model import Model
from overpaint.picture import Picture
from overpaint.request import Request
from overpaint.request.parts import Control
from tests.conftest import Decodes
from tests.tiny import tiny_model
from tests.tiny_control import tiny_net, write


class OneNet:
    """Loads the same ControlNet for every control of a request."""

    def __init__(self, path: Path, model: Model):
        self.net = load_controlnet(write(tiny_net(), path), model)

    def load(self, request: Request) -> Addons:
        return Addons(nets=tuple(self.net for _ in request.controls))


def saved(path: Path, size: tuple[int, int]) -> Path:
    Image.linear_gradient("L").resize(size).save(path)
    return path


def planned(request: Request, tmp_path: Path) -> Run:
    model = tiny_model()
    loader: Any = OneNet(tmp_path / "net.safetensors", model)
    return Run(request, model, loader)


def test_files_of_an_edit_with_two_stages_are_decoded_once(
    tmp_path: Path, decodes: Decodes
) -> None:
    sizes = {"image": (128, 96), "mask": (128, 96), "hint": (256, 192), "area": (64, 48)}
    files = {name: saved(tmp_path / f"{name}.png", size) for name, size in sizes.items()}
    read = {name: codec.read_picture(file) for name, file in files.items()}
    control = Control(kind="canny", hint=read["hint"], mask=read["area"])
    asked = Request(
        image=read["image"], mask=read["mask"], controls=(control,), crop="off", upscale=1.5
    )
    canvas.check_pictures(asked)
    planned(asked, tmp_path)
    assert decodes == {(128, 96): 2, (256, 192): 1, (64, 48): 1}  # an image and its mask


def test_control_image_of_text_to_image_is_decoded_once(tmp_path: Path, decodes: Decodes) -> None:
    hint = Picture(data=saved(tmp_path / "hint.png", (160, 128)).read_bytes())
    controls = (Control(kind="canny", hint=hint), Control(kind="canny", image=hint))
    planned(Request(controls=controls, upscale=1.5), tmp_path)
    assert decodes == {(160, 128): 1}


def test_pixels_are_freed_once_the_request_is_planned(tmp_path: Path) -> None:
    image = codec.read_picture(saved(tmp_path / "image.png", (128, 128)))
    planned(Request(image=image, strength=0.5), tmp_path)
    assert set(vars(image)) <= {"data", "sha256", "upright_size"}


def test_resized_mask_keeps_its_precision(tmp_path: Path) -> None:
    image, mask = (saved(tmp_path / f"{name}.png", (96, 64)) for name in ("image", "mask"))
    asked = Request(
        image=codec.read_picture(image),
        mask=codec.read_picture(mask),
        mask_blur=3,
        width=192,
        height=128,
        crop="off",
    )
    region = canvas.lay_out(asked, 128).region
    assert region is not None
    levels = np.unique(region.mask) * 255
    assert np.abs(levels - np.rint(levels)).max() > 0.4
    assert region.mask.min() == 0
    assert region.mask.max() <= 1
