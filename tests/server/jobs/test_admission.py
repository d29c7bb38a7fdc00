"""Requests that are too large for the server are refused before it accepts a job."""

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from overpaint.engine.memory import count_result_pixels, estimate_bytes
from overpaint.errors import RequestError
from overpaint.picture import Picture
from overpaint.request import Request
from overpaint.server.jobs.admission import check_drawable, check_room, check_text
from overpaint.server.settings import Limits
from overpaint.server.store.origins import A1111Origin, NativeOrigin
from tests.server.live import client_of

GIB = 2**30


def picture(width: int, height: int) -> Picture:
    buffer = BytesIO()
    Image.new("L", (width, height)).save(buffer, "PNG")
    return Picture(data=buffer.getvalue())


@pytest.mark.parametrize(
    ("fields", "pixels"),
    [
        ({}, 1024**2),
        ({"width": 512}, 512 * 1024),
        ({"upscale": 2.0}, 4 * 1024**2),
        ({"image": picture(640, 320)}, 1024**2),
        ({"image": picture(640, 320), "size": "keep"}, 640 * 320),
        ({"image": picture(640, 320), "mask_from": "box:0,0,9,9"}, 640 * 320),
        ({"image": picture(640, 320), "extend": (10, 0, 0, 20)}, 650 * 340),
    ],
)
def test_result_pixels_follow_from_sizes_and_pictures(fields: dict[str, Any], pixels: int) -> None:
    assert count_result_pixels(Request.model_validate(fields), 1024) == pixels


def test_request_with_too_many_result_pixels_is_refused() -> None:
    limits = Limits(result_pixels=4 * 1024**2)
    check_room(Request(num_images=4), 1024, limits, 64 * GIB)
    with pytest.raises(RequestError, match="num_images: The results have 5,242,880 pixels"):
        check_room(Request(num_images=5), 1024, limits, 64 * GIB)
    with pytest.raises(RequestError, match="request: The results have 8,388,608 pixels"):
        check_room(Request(width=2048, height=4096), 1024, limits, 64 * GIB)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "BREAK " * 60, "guidance_scale": 5.0},
        {"negative_prompt": "a red house, " * 2000},
        {"image": picture(8192, 4096), "mask_from": "box:0,0,9,9"},
        {"image": picture(64, 64), "extend": (4096, 2048, 4096, 2048)},
        {"refine": "sequential", "upscale_to": (8192, 8192)},
        {"image": picture(64, 64), "controls": ({"kind": "canny", "image": picture(8192, 4096)},)},
    ],
)
def test_request_beyond_the_memory_budget_is_refused(fields: dict[str, Any]) -> None:
    request = Request.model_validate(fields)
    assert estimate_bytes(Request(), 1024) < GIB / 8
    check_room(request, 1024, Limits(), 16 * GIB)
    with pytest.raises(RequestError, match=r"request: It needs about .* GiB of memory"):
        check_room(request, 1024, Limits(), GIB)


def test_extension_in_too_many_windows_is_refused() -> None:
    small = picture(64, 64)
    check_drawable(Request(image=small, extend=(512, 0, 0, 0)), 128)
    with pytest.raises(RequestError, match=r"extend: .* may take 64\."):
        check_drawable(Request(image=small, extend=(4096, 4096, 0, 0)), 128)


@pytest.mark.parametrize("path", ["/api/files", "/v1/files", "/fal/rest/files/upload", "signed"])
def test_upload_to_a_full_disk_is_refused(tmp_path: Path, path: str) -> None:
    limits = Limits(free_disk_bytes=2**62)
    data = picture(64, 64).data
    with client_of(tmp_path, limits=limits) as client:
        if path == "signed":
            made = client.post("/fal/rest/storage/upload/initiate", json={}).json()
            answer = client.put(made["upload_url"], content=data)
        elif path == "/v1/files":
            answer = client.post(path, files={"content": data})
        else:
            answer = client.post(path, content=data)
        assert answer.status_code == 507, answer.text
        assert list((tmp_path / "files").glob("*/*")) == []


def test_text_of_a_job_beyond_the_limit_is_refused() -> None:
    limits = Limits(stored_chars=2000)
    large = A1111Origin(parameters={"hr_prompt": "a" * 2000})
    check_text({"prompt": "a" * 1000}, NativeOrigin(), limits)
    for stored, origin in (({"prompt": "a" * 2000}, NativeOrigin()), ({}, large)):
        with pytest.raises(RequestError, match="request: It has 2,"):
            check_text(stored, origin, limits)
