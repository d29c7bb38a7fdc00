"""`Painter`, `load` and the public names, with a tiny random model."""

import base64
import inspect
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, Unpack, get_args

import numpy as np
import pytest
import torch
from PIL import Image

import overpaint
from overpaint.diffusion import denoise
from overpaint.errors import DeviceError, PictureError, RequestError
from overpaint.events import Event, Finished, Notice, Preview, Step
from overpaint.imaging import codec
from overpaint.models.addons import AddonLoader
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
    assert {preview.image.size for preview in previews} == {(128, 128)}


def test_previews_without_a_tiny_decoder_have_a_pixel_per_latent_cell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(AddonLoader, "find_preview_decoder", lambda loader: None)  # pyright: ignore[reportUnknownLambdaType]
    request = Request(prompt="a cat", num_inference_steps=3)
    events = list(Painter(tiny_model()).stream(request, preview_every=1))
    assert [event.image.size for event in events if isinstance(event, Preview)] == [(16, 16)] * 2


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

    monkeypatch.setattr("overpaint.painter.evaluate", full)
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
        *("Control", "Event", "Finished", "Lora", "Notice", "OverpaintError", "Painter", "Picture"),
        *("Preview", "Request", "Result", "Step", "__version__", "load"),
    ]
    assert all(getattr(overpaint, name) for name in overpaint.__all__)
    assert set(overpaint.__all__) <= set(dir(overpaint))
    assert {Notice, Step, Preview, Finished} == set(get_args(Event))


def test_import_of_the_package_imports_neither_torch_nor_numpy() -> None:
    program = "import sys, overpaint; print({'torch', 'numpy', 'pydantic'} & set(sys.modules))"
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert made.stdout == "set()\n", made.stderr


# What Python programs have


def test_edit_takes_arrays_and_numbers_of_numpy_and_lists_of_controls(painter: Painter) -> None:
    pixels = np.asarray(SKETCH)
    white = np.zeros((128, 160), np.float32)
    white[32:96, 32:96] = 1
    fields: dict[str, Any] = {"num_inference_steps": 2, "crop": "off"}
    plain = painter.edit(
        SKETCH,
        "a cat",
        seed=5,
        strength=0.5,
        mask=codec.read_picture(Image.fromarray((white * 255).astype(np.uint8))),
        **fields,
    )
    seed: Any = np.int64(5)
    strength: Any = np.float32(0.5)
    other = painter.edit(
        torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255,
        "a cat",
        seed=seed,
        strength=strength,
        mask=white,
        **fields,
    )
    assert same(plain.image, other.image)


# Results


def test_result_iterates_over_its_pictures(painter: Painter) -> None:
    result = painter.create("a cat", seed=3, num_images=2, num_inference_steps=1)
    assert list(result) == list(result.images)
    assert (len(result), result[1]) == (2, result.images[1])
    assert result.image is result.images[0]
    assert "versions" not in repr(result)  # the metadata


def test_result_shows_itself_in_notebooks(painter: Painter) -> None:
    two: Any = painter.create("a cat", seed=3, num_images=2, num_inference_steps=1)
    one: Any = painter.create("a cat", seed=3, num_inference_steps=1)
    assert same(Image.open(BytesIO(one._repr_png_())), one.image)
    assert one._repr_html_() is None
    assert two._repr_png_() is None
    html = two._repr_html_()
    assert "seed 3" in html
    assert "seed 4" in html
    shown = [base64.b64decode(part) for part in re.findall('base64,([^"]+)', html)]
    assert [Image.open(BytesIO(data)).size for data in shown] == [each.size for each in two]


# Progress


class FakeTerminal(StringIO):
    """The stderr of a terminal or a notebook."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("own", "argument", "terminal", "shown"),
    [
        (True, None, True, True),
        (False, None, True, False),
        (True, False, True, False),
        (False, True, True, True),
        (True, None, False, False),
    ],
)
def test_painter_shows_progress_on_terminals_unless_it_is_off(
    painter: Painter,
    monkeypatch: pytest.MonkeyPatch,
    own: bool,
    argument: bool | None,
    terminal: bool,
    shown: bool,
) -> None:
    stderr = FakeTerminal() if terminal else StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(painter, "progress", own)
    painter.create("a cat", num_inference_steps=2, progress=argument)
    assert ("painting" in stderr.getvalue()) == shown


# Threads


def test_threads_that_share_a_painter_get_the_pictures_of_one_thread(
    painter: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = list[int]()
    most = list[int]()

    def counting(trajectories: Any) -> Any:
        running.append(1)
        most.append(len(running))
        predictions = denoise.evaluate(trajectories)
        running.pop()
        return predictions

    monkeypatch.setattr("overpaint.painter.evaluate", counting)
    start = threading.Barrier(3)

    def paint(seed: int) -> Image.Image:
        start.wait()
        return painter.create(f"a cat {seed}", seed=seed, num_inference_steps=4).image

    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(paint, range(3)))
    monkeypatch.undo()
    alone = [painter.create(f"a cat {i}", seed=i, num_inference_steps=4).image for i in range(3)]
    assert all(map(same, together, alone))
    assert set(most) == {1}


def test_stream_that_is_not_finished_blocks_no_other_request(painter: Painter) -> None:
    request = Request(prompt="a cat", seed=1, num_inference_steps=3)
    stream = painter.stream(request)
    next(stream)
    between = painter.create("a dog", seed=1, num_inference_steps=2)
    *_, last = stream
    assert isinstance(last, Finished)
    assert same(last.images[0], painter.run(request).image)
    assert same(between.image, painter.create("a dog", seed=1, num_inference_steps=2).image)
