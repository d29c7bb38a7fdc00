"""`Painter`, `load` and the public names, with a tiny random model."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Unpack, get_args

import numpy as np
import pytest
import torch
from PIL import Image

import overpaint
from overpaint.errors import DeviceError, PictureError, RequestError
from overpaint.events import Event, Finished, Notice, Preview, Step
from overpaint.painter import Painter
from overpaint.provenance import metadata
from overpaint.request import Request
from overpaint.request.options import RequestOptions
from tests.tiny import tiny_model

SKETCH = Image.linear_gradient("L").rotate(30).resize((160, 128)).convert("RGB")


@pytest.fixture(scope="module")
def painter() -> Painter:
    return Painter(tiny_model())


def same(a: Image.Image, b: Image.Image) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))


def test_edit_without_a_size_keeps_the_aspect_at_the_native_area(painter: Painter) -> None:
    result = painter.edit(SKETCH, "a red house", num_inference_steps=2, seed=1)
    (image,) = result.images
    assert image.size == (144, 112)
    assert image.mode == "RGB"
    assert result.seeds == (1,)


def test_edit_with_strength_zero_returns_the_picture(painter: Painter) -> None:
    result = painter.edit(SKETCH, "a red house", strength=0.0, size="keep", num_images=2)
    assert len(result.images) == 2
    assert all(same(image, SKETCH) for image in result.images)


def test_picture_k_of_n_equals_the_picture_of_seed_plus_k(painter: Painter) -> None:
    fields: dict[str, Any] = {"num_inference_steps": 2, "sampler": "euler_a"}
    many = painter.create("a cat", seed=3, num_images=3, **fields)
    assert many.seeds == (3, 4, 5)
    alone = painter.create("a cat", seed=5, **fields)
    assert same(many.images[2], alone.images[0])


def test_stream_on_the_cpu_paints_pictures_one_by_one(painter: Painter) -> None:
    request = Request(prompt="a cat", seed=3, num_images=3, num_inference_steps=2)
    steps = [event for event in painter.stream(request) if isinstance(event, Step)]
    assert [step.done for step in steps] == [1, 2, 3, 4, 5, 6]
    assert {step.total for step in steps} == {6}


def test_saved_picture_contains_the_settings_that_remake_it(
    painter: Painter, tmp_path: Path
) -> None:
    result = painter.create("a cat", seed=3, num_images=2, num_inference_steps=1)
    result.save(tmp_path / "cat.png", 1)
    found = metadata.read_settings(tmp_path / "cat.png")
    assert found.fields["seed"] == 4
    again = painter.run(metadata.to_request(found))
    assert same(again.images[0], Image.open(tmp_path / "cat.png"))


def test_stream_with_previews_yields_them_at_the_given_interval(painter: Painter) -> None:
    request = Request(prompt="a cat", num_inference_steps=6, num_images=2)
    events = list(painter.stream(request, preview_every=2))
    previews = [event for event in events if isinstance(event, Preview)]
    assert [preview.index for preview in previews] == [0, 0, 1, 1]
    assert {preview.image.size for preview in previews} == {(16, 16)}


def test_painter_after_a_closed_stream_paints_the_same_pictures(painter: Painter) -> None:
    before = painter.create("a dog", seed=1, num_inference_steps=2)
    stream = painter.stream(Request(prompt="a cat", num_inference_steps=5))
    next(stream)
    stream.close()
    after = painter.create("a dog", seed=1, num_inference_steps=2)
    assert same(before.images[0], after.images[0])


def test_result_contains_the_notices(painter: Painter) -> None:
    result = painter.create("a cat", width=64, height=64, num_inference_steps=1)
    assert any("64x64" in notice for notice in result.notices)


def test_result_metadata_contains_seed_request_model_and_versions(painter: Painter) -> None:
    result = painter.edit(SKETCH, "a cat", seed=4, num_images=2, num_inference_steps=1)
    record = result.metadata[1]
    assert record["seed"] == 5
    assert record["request"]["prompt"] == "a cat"
    assert record["model"]["sha256"] == painter.model.sha256
    assert record["versions"]["torch"].startswith("2.")


def test_decode_that_overflows_in_fp16_is_repeated_in_fp32() -> None:
    model = tiny_model()
    vae: Any = model.vae
    vae.to(dtype=torch.float16)
    decode = vae.decode
    tried: list[torch.dtype] = []

    def overflowing(latent: torch.Tensor, **options: Any) -> Any:
        tried.append(latent.dtype)
        (pixels,) = decode(latent.float().to(vae.dtype), **options)
        return (pixels * float("inf") if latent.dtype == torch.float16 else pixels,)

    vae.decode = overflowing
    result = Painter(model).create("a cat", num_inference_steps=1)
    assert tried == [torch.float16, torch.float32]
    assert np.asarray(result.images[0]).std() > 1
    assert any("fp32" in notice for notice in result.notices)
    assert model.vae.dtype == torch.float16  # the next picture must not depend on this one


def test_create_with_a_result_that_is_not_finite_raises_device_error() -> None:
    model = tiny_model()
    unet: Any = model.unet
    with torch.no_grad():
        unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(DeviceError, match="not finite"):
        Painter(model).create("a cat", num_inference_steps=1)


def test_create_out_of_memory_raises_device_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    monkeypatch.setattr("overpaint.painter.step", full)
    with pytest.raises(DeviceError, match="out of memory"):
        Painter(tiny_model()).create("a cat")


def test_encode_that_overflows_in_fp16_is_repeated_in_fp32_with_a_notice() -> None:
    model = tiny_model()
    vae: Any = model.vae
    vae.to(dtype=torch.float16)
    encode = vae.encode

    def overflowing(pixels: torch.Tensor, **options: Any) -> Any:
        (posterior,) = encode(pixels.float().to(vae.dtype), **options)
        if pixels.dtype == torch.float16:
            posterior.parameters = posterior.parameters * float("nan")
        return (posterior,)

    vae.encode = overflowing
    result = Painter(model).edit(SKETCH, "a cat", num_inference_steps=1)
    assert any("encoded again in fp32" in notice for notice in result.notices)
    assert vae.dtype == torch.float16


def test_painter_with_invalid_input_names_the_field_or_file(
    painter: Painter, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=r"strength: 1\.1"):
        painter.edit(SKETCH, "a cat", strength=1.1)
    with pytest.raises(RequestError, match="no such field"):
        painter.create("a cat", strenth=1.0)  # pyright: ignore[reportCallIssue]
    with pytest.raises(PictureError, match="folder"):
        painter.edit(tmp_path, "a cat")


@pytest.mark.parametrize("method", [Painter.edit, Painter.create])
def test_painter_methods_take_request_options_as_keywords(method: Callable[..., Any]):
    *_, options = inspect.signature(method).parameters.values()
    assert options.kind is inspect.Parameter.VAR_KEYWORD
    assert options.annotation == Unpack[RequestOptions]


def test_public_names_of_the_package_are_stable() -> None:
    assert sorted(overpaint.__all__) == [
        "OverpaintError",
        "Painter",
        "Picture",
        "Request",
        "Result",
        "__version__",
        "load",
    ]
    assert all(getattr(overpaint, name) for name in overpaint.__all__)
    assert {Notice, Step, Preview, Finished} == set(get_args(Event))
