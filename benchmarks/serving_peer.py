"""diffusers behind FastAPI, as one would write it: pipelines loaded once, a lock around them.

`python -m benchmarks.serving_peer PORT`
"""

import base64
import io
import sys
import threading
from typing import Any

import diffusers
import torch
import uvicorn
from fastapi import FastAPI, Response
from PIL import Image
from pydantic import BaseModel

from benchmarks.peer import find_requested_steps, load_pipeline, make_image_to_image_pipeline
from overpaint.models.library import catalog
from overpaint.models.library.library import Library

SCHEDULERS = {
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lms": "LMSDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "deis": "DEISMultistepScheduler",
    "ddim": "DDIMScheduler",
}
"""diffusers' classes, by what Overpaint calls them."""

LORAS = ("miniature-comic", "miniature-sticker", "miniature-bird")


class Asked(BaseModel):
    """A request.

    Attributes:
        steps: that run.
        image: to repaint, as base64.
    """

    prompt: str
    steps: int
    sampler: str
    guidance: float
    side: int
    seed: int
    image: str | None = None
    strength: float = 1.0
    lora: str | None = None
    scale: float = 1.0


def create_app() -> FastAPI:
    create: Any = load_pipeline(catalog.resolve_model(catalog.MINIATURE), torch.float32)
    repaint: Any = make_image_to_image_pipeline(create)
    config = dict(create.scheduler.config)
    for name in LORAS:
        path = Library().find(name, "lora").path
        create.load_lora_weights(path.parent, weight_name=path.name, adapter_name=name)
    app, lock = FastAPI(), threading.Lock()

    @app.post("/paint")
    def paint(asked: Asked) -> Response:  # pyright: ignore[reportUnusedFunction]
        options: dict[str, Any] = {
            "prompt": asked.prompt,
            "num_inference_steps": asked.steps,
            "guidance_scale": asked.guidance,
            "generator": torch.Generator().manual_seed(asked.seed),
        }
        with lock:
            if asked.lora:
                create.enable_lora()
                create.set_adapters(asked.lora, asked.scale)
            else:
                create.disable_lora()
            scheduler = getattr(diffusers, SCHEDULERS[asked.sampler]).from_config(config)
            if asked.image:
                repaint.scheduler = scheduler
                image = Image.open(io.BytesIO(base64.b64decode(asked.image)))
                steps = find_requested_steps(asked.steps, asked.strength)
                options |= {"num_inference_steps": steps, "strength": asked.strength}
                made = repaint(image=image, **options)
            else:
                create.scheduler = scheduler
                made = create(width=asked.side, height=asked.side, **options)
        file = io.BytesIO()
        made.images[0].save(file, "PNG")
        return Response(file.getvalue(), media_type="image/png")

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(), port=int(sys.argv[1]), log_level="error")
