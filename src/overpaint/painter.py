"""The library's entry point: load a model, edit and create pictures.

painter = load("miniature")
result = painter.edit("sketch.png", "a watercolor painting of a red house", strength=0.7)
result.save("out.png")
"""

from collections.abc import Generator, Iterator, Sequence
from os import PathLike
from threading import Lock
from typing import TYPE_CHECKING, Unpack

import torch

from overpaint.diffusion.denoise import Trajectory, advance, evaluate, group_by_batch_key
from overpaint.diffusion.memory import choose_memory
from overpaint.diffusion.run import Run
from overpaint.errors import DeviceError
from overpaint.events import Event, Finished, Notice, Step
from overpaint.imaging import codec
from overpaint.models.addons import AddonLoader
from overpaint.models.devices import DeviceOptions
from overpaint.models.library.library import Library
from overpaint.models.memory_fallback import use_less_memory
from overpaint.models.named_models import load_library_model, resolve_decoder
from overpaint.models.tiny_decoder import load_tiny_decoder
from overpaint.picture_sources import PictureSource
from overpaint.progress import progress_bar
from overpaint.request import Request
from overpaint.request.options import RequestOptions
from overpaint.result import Result

if TYPE_CHECKING:
    from overpaint.models.model import Model

MAX_BATCH_CELLS = 2 * 128 * 128
"""Latent cells in one network call on an accelerator: two pictures of 1024² or eight of 512².

SDXL's time per picture does not fall beyond that, and its memory rises."""


class Painter:
    """A loaded model that runs requests.

    Threads can share a painter. Their requests take turns, one evaluation of the network at a time,
    and each gets the pictures that it gets alone.

    Attributes:
        model: the loaded checkpoint.
        addon_loader: loads the refiners, ControlNets, LoRAs and embeddings that requests name.
        progress: whether `edit`, `create` and `run` show a bar on terminals and in notebooks.
    """

    def __init__(self, model: "Model", store: Library | None = None, *, progress: bool = True):
        self.model = model
        self.addon_loader = AddonLoader(model, store or Library())
        self.progress = progress
        self._turn = Lock()

    def edit(
        self,
        picture: PictureSource,
        prompt: str,
        *,
        progress: bool | None = None,
        **options: Unpack[RequestOptions],
    ) -> Result:
        """Repaint a picture.

        Args:
            picture: a path, a URL, the bytes of a file, a file object, a Pillow image, a NumPy
                array [height, width, channels], or a tensor [channels, height, width]; see
                `picture_sources.read_source`. `mask` and the pictures of controls take the same.
            prompt: the picture to paint, in words.
            progress: show a bar, in place of the painter's `progress`.
            options: other fields of `Request`, such as strength, seed or num_inference_steps.

        Raises:
            RequestError: a field is invalid, or the model cannot satisfy it.
            PictureError: the picture cannot be read.
            ModelError: a refiner, ControlNet, LoRA or embedding cannot be used.
            DeviceError: the device ran out of memory, or its results are not finite.
        """
        request = Request(image=codec.read_picture(picture), prompt=prompt, **options)
        return self.run(request, progress=progress)

    def create(
        self, prompt: str, *, progress: bool | None = None, **options: Unpack[RequestOptions]
    ) -> Result:
        """Create a picture from a prompt alone.

        Args:
            prompt: the picture to paint, in words.
            progress: show a bar, in place of the painter's `progress`.
            options: other fields of `Request`, such as width, height or seed.

        Raises:
            RequestError: a field is invalid, or the model cannot satisfy it.
            ModelError: a refiner, ControlNet, LoRA or embedding cannot be used.
            DeviceError: the device ran out of memory, or its results are not finite.
        """
        return self.run(Request(prompt=prompt, **options), progress=progress)

    def run(self, request: Request, *, progress: bool | None = None) -> Result:
        """Run a request to its end and return its pictures.

        Args:
            request: the request.
            progress: show a bar, in place of the painter's `progress`.
        """
        notices: list[str] = []
        with progress_bar(self.progress if progress is None else progress) as show:
            for event in self.stream(request):
                match event:
                    case Notice(message):
                        notices.append(message)
                    case Step():
                        show(event)
                    case Finished():
                        return Result(event.images, event.seeds, event.metadata, tuple(notices))
                    case _:
                        pass
        raise AssertionError("the stream ended without Finished")

    def stream(self, request: Request, *, preview_every: int = 0) -> Generator[Event]:
        """Run a request and yield its events; close the generator to cancel the request.

        Args:
            request: the request.
            preview_every: sampler steps between two previews of a picture; 0 turns previews off.

        Yields:
            `Notice`s, a `Step` after every network call, `Preview`s, and `Finished` at the end.
        """
        events = self._stream(request, preview_every)
        try:
            while True:
                with self._turn:  # another thread's request goes on between two events
                    event = next(events, None)
                if event is None:
                    return
                yield event
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"{self.model.device} ran out of memory: {error}. Choose a smaller size, request "
                "fewer pictures at once, or load the model in bf16."
            ) from error

    def _stream(self, request: Request, preview_every: int) -> Iterator[Event]:
        run = yield from self._begin(request)
        yield from map(Notice, run.notices)
        for group in _split_into_batches(run.trajectories):
            shown = 0
            while live := [i for i in group if not run.trajectories[i].done]:
                for together in group_by_batch_key([run.trajectories[i] for i in live]):
                    yield from self._step(together)
                yield run.progress
                reached = run.trajectories[live[0]]
                if preview_every and reached.steps_done // preview_every > shown:
                    shown = reached.steps_done // preview_every
                    if not reached.done:
                        yield from run.render_previews(live)
            for index in group:
                yield from self._decode(run, index)
        yield run.finish()

    # Out of memory, each of these keeps fewer weights on the device, and tries again

    def _begin(self, request: Request) -> Generator[Notice, None, Run]:
        """Plan a request."""
        while True:
            try:
                return Run(request, self.model, self.addon_loader)
            except torch.OutOfMemoryError as error:
                yield self._use_less_memory(error)

    def _step(self, trajectories: Sequence[Trajectory]) -> Iterator[Notice]:
        """Step trajectories; out of memory, first step the halves."""
        try:
            predictions = evaluate(trajectories)
        except torch.OutOfMemoryError as error:
            half = len(trajectories) // 2
            if not half:
                yield self._use_less_memory(error)
        else:
            for trajectory, own in zip(trajectories, predictions, strict=True):
                advance(trajectory, own)
            return
        # Outside the handler, where the error keeps the tensors of its call.
        for part in filter(None, (trajectories[:half], trajectories[half:])):
            yield from self._step(part)

    def _decode(self, run: Run, index: int) -> Iterator[Notice]:
        """Decode a picture."""
        while True:
            try:
                return (yield from run.decode_picture(index))
            except torch.OutOfMemoryError as error:
                yield self._use_less_memory(error)

    def _use_less_memory(self, error: torch.OutOfMemoryError) -> Notice:
        """Keep fewer weights on the device; raise the error if it cannot hold fewer."""
        if message := use_less_memory(self.model):
            return Notice(message)
        raise error


def _split_into_batches(trajectories: Sequence[Trajectory]) -> Iterator[range]:
    """Yield the indices of the trajectories that run together.

    On an accelerator a batch has up to `MAX_BATCH_CELLS` latent cells. On the CPU pictures run one
    by one: a batch saves no time there, and alone each picture has the same bits in any request.
    """
    if trajectories:
        plan = trajectories[0].plan
        _, height, width = plan.shape
        one_by_one = plan.network.device.type == "cpu"
        size = 1 if one_by_one else max(1, MAX_BATCH_CELLS // (height * width))
        count = len(trajectories)
        yield from (range(i, min(i + size, count)) for i in range(0, count, size))


def load(
    model: str | PathLike[str] = "miniature",
    *,
    device: str = "auto",
    dtype: str = "auto",
    vae: str | PathLike[str] | None = None,
    unet: str | PathLike[str] | None = None,
    text_encoder: str | PathLike[str] | None = None,
    text_encoder_2: str | PathLike[str] | None = None,
    tiny_decoder: str | PathLike[str] | None = None,
    vram_gb: float | None = None,
    ram_gb: float | None = None,
    plan_for: Request | None = None,
    progress: bool = True,
    home: str | PathLike[str] | None = None,
    models_dirs: Sequence[str | PathLike[str]] = (),
) -> Painter:
    """Load a model and return a painter for it.

    Args:
        model: "miniature", "sdxl", the name of an added checkpoint, a Hugging Face Hub id, a
            diffusers folder or a `.safetensors` file.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        dtype: "auto", "bf16", "fp16", "fp32", "int8" or "fp8". The last two are for most weights
            of the UNet, and halve its memory; pictures change a little.
        vae: a VAE in place of the model's own, or for a model without one: a file, a diffusers
            folder, or the name of an added file.
        unet: a UNet in place of the model's own.
        text_encoder: a first text encoder (CLIP-L) in place of the model's own.
        text_encoder_2: a second text encoder (CLIP-G) in place of the model's own.
        tiny_decoder: a tiny decoder (TAESDXL's kind) for previews, and for requests with
            `decoder="tiny"`: a file, a folder, a hub id, or the name of an added file. By default
            the model's usual one; previews use a linear map until it is downloaded.
        vram_gb: memory of a GPU in GB; by default its free memory. If it has no room for all
            weights, these are in the host's memory, and blocks of them are copied to the device
            when they run. The pictures are the same, and each step takes longer.
        ram_gb: memory of the process in GB, if the device is the CPU; by default, the free memory.
            Blocks of weights without room are read from their files when they run. The pictures
            are the same.
        plan_for: a request whose memory `vram_gb` or `ram_gb` counts beside the weights; by
            default, a guided picture of the model's native size.
        progress: show a bar while painting, on terminals and in notebooks.
        home: the folder into which `overpaint models add` copies checkpoints, LoRAs, ControlNets
            and embeddings; by default the user's data folder, or `~/.overpaint` if that exists.
        models_dirs: folders whose files are used in place, such as the root of AUTOMATIC1111's web
            UI or of ComfyUI, or a file like ComfyUI's `extra_model_paths.yaml`.

    LoRAs can also be given by path, such as `loras=("./ink.safetensors",)`.

    Raises:
        ModelNotFoundError: there is no such model; the message lists the places searched.
        CheckpointError: the file is damaged, is not an SDXL checkpoint, or lacks a part.
        DeviceError: the device does not exist, or has too little memory.
        RequestError: a value is not valid.
    """
    store = Library(home, models_dirs, paths=True)
    parts = {
        "vae": vae,
        "unet": unet,
        "text_encoder": text_encoder,
        "text_encoder_2": text_encoder_2,
    }
    given = {part: own for part, own in parts.items() if own is not None}
    options = DeviceOptions(device, dtype, vram_gb, ram_gb)
    memory = choose_memory(model, store, options, parts=given, request=plan_for)
    loaded = load_library_model(
        model, store, device=device, dtype=dtype, parts=given, memory=memory
    )
    painter = Painter(loaded, store)
    painter.progress = progress
    if tiny_decoder is not None:
        found = resolve_decoder(tiny_decoder, store, download=True)
        loaded.tiny_decoder = load_tiny_decoder(found, loaded)
    return painter
