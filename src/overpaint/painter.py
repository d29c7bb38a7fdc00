"""The library's face: load a model, edit and create pictures.

painter = load("miniature")
result = painter.edit("sketch.png", "a watercolor painting of a red house", strength=0.7)
result.images[0].save("out.png")
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from overpaint.diffusion.denoise import Trajectory, group_by_batch_key, step
from overpaint.diffusion.run import Run
from overpaint.errors import DeviceError
from overpaint.events import Event, Finished, Notice
from overpaint.imaging import codec
from overpaint.models.addons import AddonLoader, load_library_model
from overpaint.models.checkpoint import load_preview_decoder
from overpaint.models.library.library import Library
from overpaint.picture import Picture
from overpaint.provenance import metadata
from overpaint.request import Request

if TYPE_CHECKING:
    from PIL.Image import Image

    from overpaint.models.model import Model

# Latent cells, over all pictures of one network call on an accelerator, beyond which a larger batch
# only takes memory: two pictures of 1024², or eight of 512², where SDXL's time per picture is flat.
BATCH_CELLS = 2 * 128 * 128


@dataclass(frozen=True)
class Result:
    """What came of a request.

    Attributes:
        images: RGB, one per picture.
        seeds: of each picture; the same request with that seed makes it alone.
        metadata: of each picture; `save` writes it into the file.
        notices: what the user should be told.
    """

    images: "tuple[Image, ...]"
    seeds: tuple[int, ...]
    metadata: tuple[dict[str, Any], ...]
    notices: tuple[str, ...]

    def save(self, path: str | PathLike[str], index: int = 0) -> None:
        """Write a picture with its settings, as PNG, JPEG or WebP by the name's ending.

        Raises:
            OutputError: it cannot be written; nothing is left behind.
        """
        metadata.write(self.images[index], Path(path), self.metadata[index])


class Painter:
    """A model that carries out requests, one at a time: not to be shared between threads.

    Attributes:
        model: the loaded checkpoint.
        addon_loader: what requests name beside it.
    """

    def __init__(self, model: "Model", store: Library | None = None):
        self.model = model
        self.addon_loader = AddonLoader(model, store or Library())

    def edit(
        self, picture: "str | PathLike[str] | bytes | Image | Picture", prompt: str, **fields: Any
    ) -> Result:
        """Repaint a picture.

        Args:
            picture: a path, encoded bytes or a PIL image.
            prompt: what it should become.
            fields: any other field of `Request`: strength, seed, num_inference_steps …

        Raises:
            RequestError: a field is wrong, or the model cannot do what it asks.
            PictureError: the picture cannot be read.
            DeviceError: the device ran out of memory, or the numbers were not finite.
        """
        return self.run(Request(image=codec.read_picture(picture), prompt=prompt, **fields))

    def create(self, prompt: str, **fields: Any) -> Result:
        """Make a picture from a prompt alone; otherwise as `edit`."""
        return self.run(Request(prompt=prompt, **fields))

    def run(self, request: Request) -> Result:
        """Carry out a request to its end."""
        notices: list[str] = []
        for event in self.stream(request):
            match event:
                case Notice(message):
                    notices.append(message)
                case Finished():
                    return Result(event.images, event.seeds, event.metadata, tuple(notices))
                case _:
                    pass
        raise AssertionError("a stream ends with Finished")

    def stream(self, request: Request, *, preview_every: int = 0) -> Generator[Event]:
        """Carry out a request, telling as it goes. Cancel by closing the iterator.

        Args:
            request: what to do.
            preview_every: steps between previews of each picture; 0 for none.

        Yields:
            `Notice`s, a `Step` after every network call, `Preview`s, and `Finished` at the end.
        """
        try:
            yield from self._stream(request, preview_every)
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"{self.model.device} ran out of memory: {error}. Make the picture smaller, ask "
                "for fewer at once, or load the model in bf16."
            ) from error

    def _stream(self, request: Request, preview_every: int) -> Iterator[Event]:
        painting = Run(request, self.model, self.addon_loader)
        yield from map(Notice, painting.notices)
        for group in _groups(painting.trajectories):
            shown = 0
            while live := [i for i in group if not painting.trajectories[i].done]:
                for together in group_by_batch_key([painting.trajectories[i] for i in live]):
                    step(together)
                yield painting.progress
                reached = painting.trajectories[live[0]]
                if preview_every and reached.steps_done // preview_every > shown:
                    shown = reached.steps_done // preview_every
                    if not reached.done:
                        yield from painting.render_previews(live)
            for index in group:
                yield from painting.decode_picture(index)
        yield painting.finish()


def _groups(trajectories: Sequence[Trajectory]) -> Iterator[range]:
    """As many at once as a network call gains from.

    On the CPU that is one: rows take as long together as one after another, and a picture made
    alone has the same bits whatever else was asked for with it.
    """
    if trajectories:
        plan = trajectories[0].plan
        _, height, width = plan.shape
        alone = plan.network.device.type == "cpu"
        size = 1 if alone else max(1, BATCH_CELLS // (height * width))
        count = len(trajectories)
        yield from (range(i, min(i + size, count)) for i in range(0, count, size))


def load(
    model: str | PathLike[str] = "miniature",
    *,
    device: str = "auto",
    dtype: str = "auto",
    preview_decoder: str | PathLike[str] | None = None,
    home: str | PathLike[str] | None = None,
) -> Painter:
    """Load a model and make a painter of it.

    Args:
        model: "miniature", "sdxl", the name of a checkpoint that was added, a hub id, a diffusers
            folder or a `.safetensors` file.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        dtype: "auto", "bf16", "fp16", "fp32".
        preview_decoder: the folder of a small decoder (AutoencoderTiny, such as TAESDXL) to make
            previews with, instead of the linear map.
        home: where `overpaint models add` has put checkpoints, LoRAs, control nets and embeddings;
            by default `~/.overpaint`.

    Raises:
        ModelNotFoundError: no such model, and what was tried.
        CheckpointError: it is not an SDXL checkpoint, or a damaged one.
        DeviceError: the device is not there.
    """
    store = Library(home)
    loaded = load_library_model(model, store, device=device, dtype=dtype)
    if preview_decoder is not None:
        loaded.preview_decoder = load_preview_decoder(
            preview_decoder, device=loaded.device, dtype=loaded.dtype
        )
    return Painter(loaded, store)
