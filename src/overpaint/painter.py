"""The library's face: load a model, edit and create pictures.

painter = load("miniature")
result = painter.edit("sketch.png", "a watercolor painting of a red house", strength=0.7)
result.images[0].save("out.png")
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from overpaint import images, metadata
from overpaint.diffusion import latents
from overpaint.diffusion.denoise import Trajectory, alike, step
from overpaint.diffusion.plan import Plan, plan
from overpaint.diffusion.prompt import embeddings_in
from overpaint.errors import DeviceError
from overpaint.events import Event, Finished, Notice, Preview, Step
from overpaint.models import catalogue, distilled
from overpaint.models.adapters import Adapter, Adapters
from overpaint.models.checkpoint import load_model, load_preview_decoder
from overpaint.models.control import ControlNet, load_net
from overpaint.models.embedding import Embedding, load_embedding
from overpaint.models.estimators import Estimator, load_estimator
from overpaint.models.lora import Lora, load_lora
from overpaint.models.store import Store
from overpaint.models.weights import some
from overpaint.names import HINTS
from overpaint.request import Picture, Request

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
        store: where the names of LoRAs and control nets lead.
    """

    def __init__(self, model: "Model", store: Store | None = None):
        self.model = model
        self.store = store or Store()
        self._refiners: dict[str, Model] = {}
        self._nets: dict[str, ControlNet] = {}
        self._estimators: dict[tuple[str, str], Estimator] = {}
        self._loras: dict[tuple[str, str, bool], Lora] = {}
        self._embeddings: dict[tuple[str, str], Embedding] = {}

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
        return self.run(Request(image=images.picture(picture), prompt=prompt, **fields))

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
        refiner = self.refiner(request.refiner) if request.refiner else None
        adapters = self.adapters(request)
        yield from (Notice(said) for said in _unused(adapters))
        request, said = distilled.settled(request, adapters)
        if said:
            yield Notice(said)
        nets, embeddings = self.nets(request), self.embeddings(request)
        estimators = self.estimators(request)
        yield from (Notice(said) for e in estimators if e and (said := e.notice))
        planned = plan(request, self.model, refiner, nets, adapters, embeddings, estimators)
        yield from map(Notice, planned.notices)
        pictures: list[Image] = []
        if not planned.plans and planned.canvas.original:
            pictures = [planned.canvas.original.copy() for _ in range(request.num_images)]
        finished_steps, total = 0, sum(p.steps for p in planned.plans)
        for group in _groups(planned.plans):
            trajectories = [Trajectory(p) for p in group]
            shown = 0
            while live := [t for t in trajectories if not t.done]:
                for together in alike(live):
                    step(together)
                done = finished_steps + sum(t.steps_done for t in trajectories)
                sigma = max((t.pending.sigma for t in trajectories if t.pending), default=0.0)
                yield Step(done, total, sigma)
                reached = live[0].steps_done
                if preview_every and reached // preview_every > shown and not live[0].done:
                    shown = reached // preview_every
                    yield from self._previews(live, len(pictures))
            for trajectory in trajectories:
                assert trajectory.latent is not None
                image, notice = latents.decode(self.model, trajectory.latent)
                if notice:
                    yield Notice(notice)
                pictures.append(planned.canvas.compose(image))
            finished_steps += sum(p.steps for p in group)
        seeds = tuple(request.seed + i for i in range(request.num_images))
        used = metadata.Used(
            loras=[adapter.lora for adapter in adapters],
            nets=[net for net in nets if net],
            embeddings=embeddings,
        )
        records = tuple(
            metadata.record(request, i, image.size, self.model, refiner, used)
            for i, image in enumerate(pictures)
        )
        yield Finished(tuple(pictures), seeds, records)

    def refiner(self, name: str) -> "Model":
        """The model of a second stage, loaded when it is first asked for, to stay.

        Raises:
            ModelNotFoundError, CheckpointError, DeviceError: as `load`.
        """
        if name not in self._refiners:
            self._refiners[name] = _loaded(
                name,
                self.store,
                device=str(self.model.device),
                dtype=str(self.model.dtype).removeprefix("torch."),
            )
        return self._refiners[name]

    def nets(self, request: Request) -> "tuple[ControlNet | None, ...]":
        """The net of each of a request's controls that acts, loaded when first asked for, to stay.

        Raises:
            ModelNotFoundError, CheckpointError: as `models.control.load_net`.
        """
        found: list[ControlNet | None] = []
        for control in request.controls:
            if not control.acts:
                found.append(None)
                continue
            name = control.net or catalogue.net_for(control.kind, self.model.family.name)
            if name not in self._nets:
                mine = name in {entry.name for entry in self.store.entries()}
                path = self.store.find(name, "control").path if mine else name
                self._nets[name] = replace(load_net(path, self.model), name=name)
            found.append(self._nets[name])
        return tuple(found)

    def estimators(self, request: Request) -> "tuple[Estimator | None, ...]":
        """What sees the hint of each of a request's controls that is made so, loaded to stay.

        Raises:
            ModelNotFoundError, CheckpointError: as `models.estimators.load_estimator`.
        """
        found: list[Estimator | None] = []
        for control in request.controls:
            name = control.estimator or catalogue.ESTIMATOR_FOR.get(control.kind)
            sight = HINTS[control.kind].sight
            if name is None or sight is None or control.hint or not control.acts:
                found.append(None)
                continue
            key = (name, sight)
            if key not in self._estimators:
                device, dtype = self.model.device, self.model.dtype
                self._estimators[key] = load_estimator(name, sight, device, dtype)
            found.append(self._estimators[key])
        return tuple(found)

    def adapters(self, request: Request) -> Adapters:
        """The request's LoRAs at their scales, read when first asked for, to stay.

        Raises:
            ModelNotFoundError: one is not in the catalogue.
            CheckpointError: one is for another model, or damaged.
        """
        found: list[Adapter] = []
        for asked in request.loras:
            entry = self.store.find(asked.name, "lora")
            key = (asked.name, entry.sha256, request.lora_lenient)
            if key not in self._loras:
                read = load_lora(entry.path, self.model, lenient=request.lora_lenient)
                self._loras[key] = replace(read, name=asked.name)
            text = asked.scale if asked.text_scale is None else asked.text_scale
            blocks = tuple(sorted(asked.blocks.items()))
            found.append(Adapter(self._loras[key], asked.scale, text, blocks))
        return tuple(found)

    def embeddings(self, request: Request) -> tuple[Embedding, ...]:
        """The embeddings that the request's prompts name.

        Raises:
            ModelNotFoundError: one is not in the catalogue.
            CheckpointError: one is for another model, or damaged.
        """
        texts = (request.prompt, request.prompt_2)
        negative = (request.negative_prompt, request.negative_prompt_2)
        found: list[Embedding] = []
        for name in embeddings_in(*texts, *negative):
            entry = self.store.find(name, "embedding")
            key = (entry.sha256, name)
            if key not in self._embeddings:
                self._embeddings[key] = load_embedding(entry.path, name, self.model)
            found.append(self._embeddings[key])
        return tuple(found)

    def _previews(self, live: Sequence[Trajectory], first: int) -> Iterator[Preview]:
        for i, trajectory in enumerate(live):
            assert trajectory.denoised is not None
            if image := latents.preview(self.model, trajectory.denoised):
                yield Preview(first + i, image)


def _unused(adapters: Adapters) -> Iterator[str]:
    """What is to be said of keys that belong nowhere."""
    for adapter in adapters:
        if unused := adapter.lora.unused:
            yield f"{len(unused)} keys of {adapter.lora.name} are not used: {some(unused)}."


def _groups(plans: Sequence[Plan]) -> Iterator[Sequence[Plan]]:
    """As many at once as a network call gains from.

    On the CPU that is one: rows take as long together as one after another, and a picture made
    alone has the same bits whatever else was asked for with it.
    """
    if plans:
        _, height, width = plans[0].shape
        alone = plans[0].network.device.type == "cpu"
        size = 1 if alone else max(1, BATCH_CELLS // (height * width))
        yield from (plans[i : i + size] for i in range(0, len(plans), size))


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
    store = Store(home)
    loaded = _loaded(model, store, device=device, dtype=dtype)
    if preview_decoder is not None:
        loaded.preview_decoder = load_preview_decoder(
            preview_decoder, device=loaded.device, dtype=loaded.dtype
        )
    return Painter(loaded, store)


def _loaded(name: str | PathLike[str], store: Store, *, device: str, dtype: str) -> "Model":
    """A model by its name, of the store's checkpoints or as `load_model` knows them."""
    path = store.checkpoint(name) if isinstance(name, str) else None
    model = load_model(path or name, device=device, dtype=dtype)
    model.name = fspath(name)
    return model
