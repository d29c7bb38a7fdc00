"""A server under mixed load, in three variants.

| Variant | Server |
|---|---|
| batched | Overpaint |
| solo | Overpaint with steps of one picture only |
| peer | diffusers behind a lock |

The model is the miniature in fp32, guided, at 128 × 128 pixels. Sixteen clients ask for pictures.
Each client asks for its next picture when it has the whole previous one.

The requests are drawn at random, and batch badly on purpose. Three of four take 8 to 12 steps, like
drafts, and one takes 40 to 50, like a final picture. Half of them repaint a picture at a strength
of 0.4 to 0.8. A quarter use one of three LoRAs. There are eight samplers, the guidance is 3 to 8,
and prompts differ.
"""

import base64
import io
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
from PIL import Image

from benchmarks.harness import interleave, print_line
from benchmarks.serving_peer import LORAS, SCHEDULERS, Asked
from overpaint.engine.profile import Profile

ROOT = Path(__file__).parents[1]
CLIENTS = 16
SIDE_PX = 128
SHORT_STEPS = (8, 12)
"""Fewest and most steps of a draft."""
LONG_STEPS = (40, 50)
"""Fewest and most steps of a final picture."""
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "black")
THINGS = ("house", "tree", "car", "boat", "cat", "fish", "cup", "star", "flower", "bird")
STYLES = ("a photo of", "a watercolor painting of", "a pencil sketch of", "a pixel art of")
START_TIMEOUT_S = 120.0
RESPONSE_TIMEOUT_S = 600.0


def measure(*, quick: bool) -> dict[str, Any]:
    """Measure the throughput, and the seconds that short requests take."""
    requests = mix(32 if quick else 192)
    with tempfile.TemporaryDirectory(prefix="overpaint-bench-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        batched, solo = profiles(folder)
        clients = {
            "batched": Client(
                stack.enter_context(overpaint(folder / "batched", batched)), ask_overpaint
            ),
            "solo": Client(stack.enter_context(overpaint(folder / "solo", solo)), ask_overpaint),
            "peer": Client(stack.enter_context(peer()), ask_peer),
        }
        waits: dict[str, list[list[float]]] = {name: [] for name in clients}

        def contestant(name: str) -> Callable[[], None]:
            return lambda: waits[name].append(load(clients[name], requests))

        for client in clients.values():
            load(client, mix(CLIENTS, seed=1))
        contestants = {name: contestant(name) for name in clients}
        timings = interleave(contestants, 1 if quick else 3, warm_up=False)
    short = [i for i, request in enumerate(requests) if request.steps <= SHORT_STEPS[1]]
    result: dict[str, Any] = {
        "requests": len(requests),
        "short": len(short),
        "throughput_over_peer": round(timings.ratio("peer", "batched"), 3),
        "throughput_over_solo": round(timings.ratio("solo", "batched"), 3),
    }
    marks = {name: [percentiles(own, short) for own in rounds] for name, rounds in waits.items()}
    for name, rounds in marks.items():
        result[f"{name}_per_second"] = round(len(requests) / timings.median(name), 2)
        result[f"{name}_short_p50"] = median(own[49] for own in rounds)
        result[f"{name}_short_p99"] = median(own[98] for own in rounds)
    for other in ("solo", "peer"):
        # Compare within a round: if the machine is slow for a while, all variants are slow.
        pairs = zip(marks["batched"], marks[other], strict=True)
        result[f"short_p99_of_{other}"] = median(own[98] / peers[98] for own, peers in pairs)
    result = {k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()}
    print_line("  " + ", ".join(f"{key} {value}" for key, value in result.items()))
    return result


def percentiles(seconds: Sequence[float], of: Sequence[int]) -> list[float]:
    """Return the 1st to 99th percentile of the seconds of the requests with these indices."""
    return quantiles([seconds[i] for i in of], n=100, method="inclusive")


def mix(count: int, seed: int = 0) -> list[Asked]:
    """Draw different requests, the same ones for every variant."""
    rng = random.Random(seed)
    buffer = io.BytesIO()
    with Image.open(ROOT / "examples" / "house.png") as house:
        house.convert("RGB").resize((SIDE_PX, SIDE_PX)).save(buffer, "PNG")
    image = base64.b64encode(buffer.getvalue()).decode()
    return [
        Asked(
            prompt=f"{rng.choice(STYLES)} a {rng.choice(COLORS)} {rng.choice(THINGS)}",
            steps=rng.randint(*(LONG_STEPS if rng.random() < 0.25 else SHORT_STEPS)),
            sampler=rng.choice(list(SCHEDULERS)),
            guidance=rng.uniform(3, 8),
            side=SIDE_PX,
            seed=number,
            image=image if rng.random() < 0.5 else None,
            strength=rng.choice((0.4, 0.5, 0.6, 0.7, 0.8)),
            lora=rng.choice(LORAS) if rng.random() < 0.25 else None,
            scale=rng.uniform(0.5, 1),
        )
        for number in range(count)
    ]


Ask = Callable[[httpx.Client, Asked], bytes]
"""Sends a request and returns the picture's file."""


@dataclass(frozen=True)
class Client:
    """A server's address, and the function that sends requests to it."""

    url: str
    ask: Ask


def load(client: Client, requests: Sequence[Asked]) -> list[float]:
    """Send all requests, `CLIENTS` at a time, and return the seconds of each."""

    def one(request: Asked) -> float:
        began = time.perf_counter()
        data = client.ask(http, request)
        took = time.perf_counter() - began
        with Image.open(io.BytesIO(data)) as image:
            if image.size != (SIDE_PX, SIDE_PX):
                raise RuntimeError(f"a picture of {image.size} came back")
        return took

    with (
        httpx.Client(base_url=client.url, timeout=RESPONSE_TIMEOUT_S) as http,
        ThreadPoolExecutor(CLIENTS) as threads,
    ):
        return list(threads.map(one, requests))


def ask_overpaint(http: httpx.Client, asked: Asked) -> bytes:
    request: dict[str, Any] = {
        "prompt": asked.prompt,
        "num_inference_steps": asked.steps,
        "sampler": asked.sampler,
        "guidance_scale": asked.guidance,
        "width": asked.side,
        "height": asked.side,
        "seed": asked.seed,
    }
    if asked.image:
        request |= {"image": {"data": asked.image}, "strength": asked.strength}
    if asked.lora:
        request["loras"] = [{"name": asked.lora, "scale": asked.scale}]
    job = http.post("/api/jobs?wait=60", json={"request": request}).raise_for_status().json()
    while job["state"] in ("queued", "running"):
        job = http.get(f"/api/jobs/{job['id']}?wait=60").raise_for_status().json()
    return http.get(job["results"][0]["url"]).raise_for_status().content


def ask_peer(http: httpx.Client, asked: Asked) -> bytes:
    return http.post("/paint", json=asked.model_dump()).raise_for_status().content


def profiles(folder: Path) -> tuple[Path, Path]:
    """Measure the profile of steps; return its file, and a file with steps of one picture only."""
    batched, solo = folder / "profile.json", folder / "solo.json"
    bench = [*command("bench"), "--quiet", "--device", "cpu", "--dtype", "fp32"]
    subprocess.run([*bench, "--output", str(batched)], check=True, stdout=subprocess.DEVNULL)
    found = Profile.read(batched)
    pairs = {shape: {2: times[2]} for shape, times in found.measured.items()}
    replace(found, measured=pairs).write(solo)
    for name, path in (("batched", batched), ("solo", solo)):
        print_line(
            f"  {name}: steps of up to {Profile.read(path).cap(SIDE_PX // 8, SIDE_PX // 8)} rows"
        )
    return batched, solo


def command(name: str) -> list[str]:
    return [str(Path(sys.executable).parent / "overpaint"), name]


@contextmanager
def overpaint(data: Path, profile: Path) -> Generator[str]:
    """Run Overpaint's server and yield its address."""
    options = ["--data", str(data), "--profile", str(profile), "--device", "cpu", "--dtype", "fp32"]
    with running([*command("serve"), *options, "--port"], "/readyz") as url:
        yield url


@contextmanager
def peer() -> Generator[str]:
    """Run the peer's server and yield its address."""
    with running([sys.executable, "-m", "benchmarks.serving_peer"], "/docs") as url:
        yield url


@contextmanager
def running(program: Sequence[str], ready: str) -> Generator[str]:
    """Run a program with a free port as its last argument, and yield its address once ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([*program, str(port)], cwd=ROOT, stderr=subprocess.DEVNULL)
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + START_TIMEOUT_S
    try:
        while not _answers(url + ready):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{' '.join(program)} does not start")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False
