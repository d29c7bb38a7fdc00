"""What a server is sent that it must refuse, in every dialect: the right answer, little memory, and
no connection to what a URL names.

What one dialect alone has is beside its tests; hosts and pages are in http/test_guard, addresses of
webhooks in test_addresses, names in test_named.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image, PngImagePlugin

from tests.imaging.test_codec import bomb
from tests.server.processes import Server

LITTLE = 100 * 2**20
"""Bytes by which memory may grow over everything here."""

WRAPPED: dict[str, tuple[str, str]] = {
    "native": ("/api/jobs", '{"request": %s}'),
    "replicate": ("/v1/predictions", '{"version": "owner/miniature", "input": %s}'),
    "cog": ("/predictions", '{"input": %s}'),
    "openai": ("/v1/images/generations", "%s"),
    "a1111": ("/sdapi/v1/txt2img", "%s"),
    "fal": ("/fal/queue/owner/miniature", "%s"),
}
"""Where each dialect's fields go, and in what."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that must not grow over all of these tests, and has no jobs when they end."""
    folder = tmp_path_factory.mktemp("bad")
    with Server(folder, "--engine", "sized", "--seconds", "0") as started:
        started.until_ready()
        good = started.submit(image={"data": base64.b64encode(png()).decode()})
        assert started.ended(good)["state"] == "succeeded"
        process = psutil.Process(started.process.pid)
        before = process.memory_info().rss
        yield started
        assert process.memory_info().rss - before < LITTLE
        assert [job["id"] for job in started.client.get("/api/jobs").json()["jobs"]] == [good]


class Canary:
    """Something that listens, and counts who connects."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.socket.getsockname()[1])
        self.heard = 0
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.socket.accept()[0].close()
                self.heard += 1

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self.socket.close()


@pytest.fixture(scope="module")
def canary() -> Iterator[Canary]:
    listening = Canary()
    yield listening
    listening.close()
    assert listening.heard == 0


def sent(server: Server, dialect: str, fields: str | bytes) -> httpx.Response:
    """Fields as they stand, which may be no JSON."""
    path, around = WRAPPED[dialect]
    body = fields if isinstance(fields, bytes) else (around % fields).encode()
    return server.client.post(path, content=body, headers={"Content-Type": "application/json"})


def refused(answer: httpx.Response, status: int, says: str) -> None:
    assert answer.status_code == status, answer.text[:300]
    assert says in json.dumps(answer.json(), ensure_ascii=False)
    assert len(answer.content) < 10_000


def wrong(dialect: str) -> int:
    """How a dialect's clients expect to hear of a value that will not do."""
    return 400 if dialect == "openai" else 422


# Fields

STEPS = {"openai": "steps", "a1111": "steps"}
GUIDANCE = {"a1111": "cfg_scale"}
COUNT = {"openai": "n", "replicate": "num_outputs", "cog": "num_outputs", "a1111": "batch_size"}
SEED = {"a1111": "subseed_strength"}  # whose -1 is any seed
STRENGTH = {
    "replicate": "prompt_strength",
    "cog": "prompt_strength",
    "a1111": "denoising_strength",
}
SAMPLER = {"native": "sampler", "a1111": "sampler_name"}

FIELDS: tuple[tuple[dict[str, str], str, str], ...] = (
    (STEPS, "num_inference_steps", "1000000000"),
    (STEPS, "num_inference_steps", "0"),
    (STEPS, "num_inference_steps", "-1"),
    (STEPS, "num_inference_steps", "1.5"),
    (GUIDANCE, "guidance_scale", "NaN"),
    (GUIDANCE, "guidance_scale", "Infinity"),
    (GUIDANCE, "guidance_scale", "1e308"),
    (GUIDANCE, "guidance_scale", "1e999"),
    (COUNT, "num_images", "1000000"),
    (SEED, "seed", "-1"),
    ({}, "seed", "-2"),
    (STRENGTH, "strength", "1.0001"),
    ({}, "seed", str(2**64)),
    ({}, "seed", "NaN"),
    ({}, "prompt", f'"{"a" * 1_000_000}"'),
    ({}, "prompt", r'"a\u0000b"'),
    ({}, "prompt", r'"\ud800"'),
    ({}, "negative_prompt", r'"a\u0000b"'),
    (SAMPLER, "scheduler", f'"{"a" * 5_000_000}"'),
    ({}, "prompt", f'"{"<lora:a>" * 200_000}"'),
    ({}, "prompt", f'"<lora:a{":" * 4_000_000}>"'),
    (SAMPLER, "scheduler", '"__class__"'),
)
"""What a field is called where it is not called as here, its name, and a value as JSON."""


TOLERATED = {
    *(("a1111", "-2"), ("a1111", "1.5"), ("a1111", "1.0001"), ("openai", "1.0001")),
    *((dialect, seed) for dialect in ("replicate", "cog", "fal") for seed in ("-1", "-2")),
}
"""Values that a dialect accepts: any negative seed is a random one, AUTOMATIC1111 cuts fractions
off, and some APIs read no strength without an image."""


@pytest.mark.parametrize("dialect", WRAPPED)
@pytest.mark.parametrize(("names", "name", "value"), FIELDS)
def test_native_invalid_field_is_named(
    server: Server, dialect: str, names: Any, name: str, value: str
) -> None:
    name = names.get(dialect, name)
    if (dialect, value) in TOLERATED:
        name, value = "prompt", "1"
    prompt = "" if name == "prompt" else '"prompt": "a", '
    refused(sent(server, dialect, f'{{{prompt}"{name}": {value}}}'), wrong(dialect), name)


@pytest.mark.parametrize("dialect", WRAPPED)
def test_lora_path_is_refused(server: Server, dialect: str) -> None:
    answer = sent(server, dialect, '{"prompt": "<lora:../../x:1>"}')
    refused(answer, wrong(dialect), "'../../x'. Names lead to the catalog alone")


@pytest.mark.parametrize("dialect", WRAPPED)
@pytest.mark.parametrize(
    ("width", "height"), [(100_000, 100_000), (1023, 1024), (8192, 8), (16, 16), (264, 128), (0, 0)]
)
def test_size_out_of_range_is_refused(
    server: Server, dialect: str, width: int, height: int
) -> None:
    """The model draws 32 to 256 pixels a side, in multiples of 8."""
    match dialect:
        case "openai":
            name, fields = "size", {"size": f"{width}x{height}"}
        case "fal":
            name, fields = "image_size", {"image_size": {"width": width, "height": height}}
        case _:
            name, fields = "width", {"width": width, "height": height}
    refused(sent(server, dialect, json.dumps({"prompt": "a"} | fields)), wrong(dialect), name)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"model": "a\r\nb"}, "model"),
        ({"request": {"loras": [{"name": "a\r\nb"}]}}, "loras.0.name"),
        ({"webhook": "https://example.org/\r\nHost: x"}, "webhook"),
    ],
)
def test_name_with_line_breaks_is_refused(
    server: Server, fields: dict[str, Any], field: str
) -> None:
    refused(server.client.post("/api/jobs", json={"request": {}} | fields), 422, field)


@pytest.mark.parametrize("dialect", WRAPPED)
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ('{"seed": 1, "prompt": "a", "seed": 2}', "'seed' is repeated"),
        ('{"prompt": "a", "loras": [{"a": 1, "a": 1}]}', "'a' is repeated"),
        (f'{{"seed": {"9" * 100_000}}}', "parsing"),
        (f'{{"prompt": {"[" * 100_000}{"]" * 100_000}}}', "100,000 brackets"),
        (f'{{"prompt": {"[" * 9_000}{"]" * 9_000}}}', "parsing"),
        ('{"prompt": "é"}'.encode("latin-1"), "parsing"),
        (b"\xff\xfe\x00", "parsing"),
    ],
)
def test_unreadable_body_is_refused(
    server: Server, dialect: str, fields: str | bytes, says: str
) -> None:
    refused(sent(server, dialect, fields), 400, says)


@pytest.mark.parametrize("dialect", WRAPPED)
def test_body_invalid_json_is_refused(server: Server, dialect: str) -> None:
    refused(sent(server, dialect, '{"prompt": "a"'), wrong(dialect), "JSON")


def test_many_invalid_fields_are_shortened(server: Server) -> None:
    many = {f"prompt_{number}": 1 for number in range(30_000)}
    answer = sent(server, "native", json.dumps(many))
    assert answer.status_code == 422
    assert len(answer.content) < 20_000


def test_long_field_name_is_shortened(server: Server) -> None:
    answer = sent(server, "native", json.dumps({"prompt": "a", "a" * 5_000_000: 1}))
    refused(answer, 422, "a" * 100)


@pytest.fixture(scope="module")
def tolerant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose dialects accept requests, so that it has jobs."""
    with Server(tmp_path_factory.mktemp("tolerant"), "--engine", "fake", "--seconds", "0") as made:
        yield made.until_ready()


@pytest.mark.parametrize("dialect", [name for name in WRAPPED if name != "native"])
@pytest.mark.parametrize(
    ("fields", "reported"),
    [
        ({"prompt": "a", "no_such_field": 1}, "no_such_field"),
        ({"prompt": "a", "__class__": "x"}, "__class__"),
        ({"prompt": "a", "a" * 5_000_000: 1}, "a" * 90),
        ({"prompt": "a"} | {f"other_{number}": 1 for number in range(30_000)}, "other_0, "),
    ],
    ids=["unknown", "dunder", "long", "many"],
)
def test_unknown_field_of_a_dialect_is_reported_shortened(
    tolerant: Server, dialect: str, fields: dict[str, Any], reported: str
) -> None:
    answer = sent(tolerant, dialect, json.dumps(fields))
    assert answer.is_success, answer.text[:300]
    assert reported in answer.headers["X-Ignored-Fields"]
    assert len(answer.headers["X-Ignored-Fields"]) < 10_000


@pytest.mark.parametrize("dialect", ["replicate", "cog", "a1111"])
def test_empty_prompt_of_another_type_counts_as_absent(tolerant: Server, dialect: str) -> None:
    answer = sent(tolerant, dialect, '{"prompt": []}')
    assert answer.is_success, answer.text[:300]
    assert "prompt" in answer.headers["X-Ignored-Fields"]


@pytest.mark.parametrize("charset", ["punycode", "undefined", "utf-16", "x" * 1000])
@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/files"])
def test_charset_other_than_utf_8_is_refused(server: Server, path: str, charset: str) -> None:
    """Python reads some of them in a time that grows with the square of a text's length."""
    head = {"Content-Type": f"multipart/form-data; boundary=x; charset={charset}"}
    body = f'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n-{"a" * 900_000}\r\n--x--'
    refused(server.client.post(path, content=body.encode(), headers=head), 415, "UTF-8")


@pytest.mark.parametrize("charset", ["", "utf-8", "'UTF-8'", '"utf8"'])
def test_charset_utf_8_spellings_are_accepted(server: Server, charset: str) -> None:
    head = {"Content-Type": f"application/json; charset={charset}"}
    answer = server.client.post("/api/jobs", content=b'{"request": {"stepz": 1}}', headers=head)
    refused(answer, 422, "stepz")


# Pictures


def png(size: tuple[int, int] = (64, 64), **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG", **options)
    return file.getvalue()


def text_bomb() -> bytes:
    """A PNG whose text would be 100 MB."""
    text = PngImagePlugin.PngInfo()
    text.add(b"zTXt", b"note\0\0" + zlib.compress(bytes(100_000_000)))
    return png(pnginfo=text)


def half(kind: str) -> bytes:
    """Of a picture that would take 200 MB."""
    file = io.BytesIO()
    Image.new("RGB", (8192, 8192), "red").save(file, kind, **FAST[kind])
    return file.getvalue()[: file.tell() // 2]


FAST: dict[str, dict[str, Any]] = {"JPEG": {}, "PNG": {"compress_level": 1}}


def animated() -> bytes:
    """10,000 frames."""
    shades = [Image.new("L", (8, 8), shade) for shade in (0, 255)]
    file = io.BytesIO()
    shades[0].save(
        file, "PNG", save_all=True, append_images=(shades[1:] + shades[:1]) * 4999 + shades[1:]
    )
    return file.getvalue()


def scanned() -> bytes:
    """A JPEG that goes over its picture again and again."""
    file = io.BytesIO()
    Image.new("L", (64, 64)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rfind(b"\xff\xda")
    return data[:last] + data[last:-2] * 2000 + data[-2:]


def tiff() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "TIFF")
    return file.getvalue()


FOREIGN = ("SVG", "FITS", "PSD", "EPS", "TIFF")

FILES: dict[str, bytes] = {
    "nothing": b"",
    "HTML": b"<html><body>not a picture</body></html>",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1/"/></svg>',
    "FITS": b"SIMPLE  =                    T" + b" " * 3000,
    "PSD": b"8BPS\0\1" + bytes(100),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
    "a pickle": b"\x80\x04\x95" + bytes(50),
    "a magic number alone": b"\x89PNG\r\n\x1a\n",
    "zeros": bytes(1000),
}

PICTURES: dict[str, Callable[[], bytes]] = {
    "50,000² pixels in 1 KB": bomb,
    "TIFF": tiff,
    "half of a JPEG": partial(half, "JPEG"),
    "half of a PNG": partial(half, "PNG"),
    "2,000 scans": scanned,
    "67,174,400 pixels": partial(png, (8192, 8200), compress_level=9),
    "10,000 frames": animated,
    "1x1": partial(png, (1, 1)),
    "1x20,000": partial(png, (1, 20_000)),
}


@cache
def read_bad_picture(kind: str) -> bytes:
    """Return a file of one of the kinds above; encoding some takes seconds."""
    return FILES[kind] if kind in FILES else PICTURES[kind]()


TEXTS: dict[str, str] = {
    "no base64": "data:image/png;base64,%%%%",
    "half of base64": "data:image/png;base64,iVBORw0KGgo",
    "no comma": "data:image/png;base64",
    "no scheme": "image/png;base64,AAAA",
    "a path": "/etc/passwd",
    "a path above": "../../../etc/passwd",
    "a file": "file:///etc/passwd",
    "gopher": "gopher://127.0.0.1:6379/_INFO",
    "metadata": "http://169.254.169.254/latest/meta-data/",
    "percent signs": "data:image/png," + "%41" * 500_000,
}

URLS = (
    "http://127.0.0.1:{port}/a.png",
    "http://localhost:{port}/a.png",
    "http://[::ffff:127.0.0.1]:{port}/a.png",
    "http://2130706433:{port}/a.png",
    "http://0x7f.1:{port}/a.png",
    "http://0:{port}/a.png",
    "http://example.org@127.0.0.1:{port}/a.png",
    "http://example.org\\@127.0.0.1:{port}/a.png",
    "ftp://127.0.0.1:{port}/a.png",
    "//127.0.0.1:{port}/a.png",
)


def painted(server: Server, dialect: str, text: str) -> httpx.Response:
    """Ask for a picture to be repainted that is given as a text."""
    fields: dict[str, Any] = {"prompt": "a", "num_inference_steps": 1}
    match dialect:
        case "native":
            fields["image"] = {"data": text.removeprefix("data:image/png;base64,")}
        case "replicate" | "cog":
            fields["image"] = text
        case "fal":
            fields["image_url"] = text
        case _:
            fields = {"prompt": "a", "steps": 1, "init_images": [text]}
            return server.client.post("/sdapi/v1/img2img", json=fields)
    return sent(server, dialect, json.dumps(fields))


TAKE_TEXTS = ("native", "replicate", "cog", "a1111", "fal")
"""Dialects in which pictures are texts; OpenAI's are files in forms."""


@pytest.mark.parametrize("dialect", [*TAKE_TEXTS, "openai", "upload"])
@pytest.mark.parametrize("kind", [*FILES, *PICTURES])
def test_picture_invalid_is_refused(server: Server, dialect: str, kind: str) -> None:
    data = read_bad_picture(kind)
    if dialect == "upload":
        answer = server.client.post("/api/files", content=data)
    elif dialect == "openai":
        files = {"image": ("house.png", data, "image/png")}
        answer = server.client.post("/v1/images/edits", data={"prompt": "a"}, files=files)
    else:
        uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        answer = painted(server, dialect, uri)
    fixed = {"openai": 400, "cog": 422, "fal": 422}  # say so of whatever is wrong with a picture
    refused(answer, fixed.get(dialect, 415 if kind in FOREIGN else 422), "")


def test_picture_with_text_bomb_is_accepted_and_its_text_refused(server: Server) -> None:
    image = base64.b64encode(text_bomb()).decode()
    refused(server.client.post("/sdapi/v1/png-info", json={"image": image}), 422, "text")
    answer = server.client.post("/api/files", content=text_bomb())
    assert answer.status_code == 201, answer.text


@pytest.mark.parametrize("dialect", ["native", "replicate", "cog", "fal"])  # others give a size
@pytest.mark.parametrize("size", [(8, 2000), (2000, 8)])
def test_picture_of_unsupported_size_is_refused(
    server: Server, dialect: str, size: tuple[int, int]
) -> None:
    uri = f"data:image/png;base64,{base64.b64encode(png(size)).decode()}"
    refused(painted(server, dialect, uri), wrong(dialect), "out of range")


@pytest.mark.parametrize("dialect", TAKE_TEXTS)
@pytest.mark.parametrize("kind", TEXTS)
def test_picture_invalid_text_is_refused(server: Server, dialect: str, kind: str) -> None:
    refused(painted(server, dialect, TEXTS[kind]), 422, "")


@pytest.mark.parametrize("dialect", TAKE_TEXTS)
@pytest.mark.parametrize("url", URLS)
def test_picture_url_is_refused_when_fetching_is_off(
    server: Server, canary: Canary, dialect: str, url: str
) -> None:
    refused(painted(server, dialect, url.format(port=canary.port)), 422, "")


# HTTP


@pytest.mark.parametrize("number", ["99999999999999999999", "-1", "x", str(2**63 - 1)])
def test_last_event_id_invalid_is_refused(server: Server, number: str) -> None:
    name = server.client.get("/api/jobs").json()["jobs"][0]["id"]
    for path in (f"/api/jobs/{name}/events", f"/v1/predictions/{name}/stream"):
        answer = server.client.get(path, headers={"Last-Event-ID": number})
        refused(answer, 422, "Last-Event-ID")


def test_event_stream_beyond_the_end_ends(server: Server) -> None:
    name = server.client.get("/api/jobs").json()["jobs"][0]["id"]
    answer = server.client.get(f"/api/jobs/{name}/events", headers={"Last-Event-ID": "9999"})
    assert (answer.status_code, answer.text) == (200, "")


@pytest.mark.parametrize(
    "path",
    [
        "/api/jobs/%00",
        "/api/jobs/..%2f..%2fjobs.db",
        "/api/jobs/%ff/events",
        "/api/jobs/x/results/..%2f..%2f..%2fjobs.db",
        "/api/jobs?before=%00",
        "/api/files/..%2f..%2fjobs.db",
        "/v1/files/%2e%2e%2fjobs.db",
        "/v1/predictions/%00",
        "/v1/models/%00/%00",
        "/fal/queue/owner/miniature/requests/%00/status",
    ],
)
def test_path_with_invalid_name_is_answered_404(server: Server, path: str) -> None:
    refused(server.client.get(path), 404, "")


def test_byte_ranges_of_a_result_are_served(server: Server) -> None:
    job = server.client.get("/api/jobs").json()["jobs"][0]
    url = job["results"][0]["url"]
    some = server.client.get(url, headers={"Range": "bytes=0-9"})
    assert (some.status_code, len(some.content)) == (206, 10)
    many = ",".join(f"{at}-{at}" for at in range(10_000))
    refused(server.client.get(url, headers={"Range": f"bytes={many}"}), 416, "ranges")


def test_result_with_script_is_sent_as_image(server: Server) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "<script>alert(1)</script>")
    image = base64.b64encode(png(pnginfo=text)).decode()
    answer = server.client.post("/sdapi/v1/png-info", json={"image": image})
    assert answer.json()["info"] == "<script>alert(1)</script>"
    assert answer.headers["content-type"] == "application/json"
