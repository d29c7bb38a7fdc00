"""The server decodes no picture twice for a request."""

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from overpaint.server.api.a1111.option_fields import Options
from overpaint.server.api.a1111.protocol import ImageInputs
from overpaint.server.api.a1111.translation import to_requests
from overpaint.server.api.image_inputs import load_nested_images
from overpaint.server.outbound.image_fetch import ImageSources
from overpaint.server.store.files import Files
from tests.conftest import Decodes


def encoded(kind: str, size: tuple[int, int], mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a1111_mask_is_decoded_once(kind: str, decodes: Decodes) -> None:
    image = base64.b64encode(encoded("PNG", (64, 48))).decode()
    mask = base64.b64encode(encoded(kind, (64, 48), "L")).decode()
    to_requests(ImageInputs(init_images=[image], mask=mask), Options())
    assert decodes == {(64, 48): 1}


def test_upload_in_several_fields_is_checked_once(tmp_path: Path, decodes: Decodes) -> None:
    files = Files(tmp_path)
    shown = {"file": files.put(encoded("JPEG", (64, 48)))}
    fields: dict[str, Any] = {"image": shown, "controls": [{"hint": shown}, {"hint": shown}]}
    load_nested_images(fields, ImageSources(files))
    assert sum(decodes.values()) == 1
