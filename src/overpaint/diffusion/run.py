"""A request under way: planned for a model, its pictures as trajectories, decoded one by one.

Whoever drives it decides what is stepped when, and with whom; it says what came of it.
"""

from collections.abc import Iterator

from PIL.Image import Image

from overpaint.diffusion import latents
from overpaint.diffusion.denoise import Trajectory
from overpaint.diffusion.planner import plan
from overpaint.events import Finished, Notice, Preview, Step
from overpaint.models import few_step
from overpaint.models.addons import AddonLoader
from overpaint.models.model import Model
from overpaint.provenance import metadata
from overpaint.request import Request


class Run:
    """A request that was begun.

    Attributes:
        model: that paints it.
        request: as it is carried out: with what its LoRAs ask for.
        trajectories: one a picture; none where there is nothing to paint.
        notices: what planning had to say.
    """

    def __init__(self, request: Request, model: Model, addon_loader: AddonLoader):
        """Plan a request.

        Raises:
            RequestError, PictureError, ModelError, DeviceError: as `plan` and `Shelf.take`.
        """
        extras = addon_loader.load(request)
        self.notices = list(extras.notices)
        self.model = model
        self.request, said = few_step.apply_few_step_settings(request, extras.adapters)
        if said:
            self.notices.append(said)
        planned = plan(self.request, model, extras)
        self.notices += planned.notices
        self.trajectories = tuple(map(Trajectory, planned.plans))
        self._steps = sum(own.steps for own in planned.plans)
        self._canvas, self._extras = planned.canvas, extras
        self._pictures: dict[int, Image] = {}
        if not self.trajectories and planned.canvas.original:
            copies = range(request.num_images)
            self._pictures = {i: planned.canvas.original.copy() for i in copies}

    @property
    def progress(self) -> Step:
        """How far it is."""
        done = sum(trajectory.steps_done for trajectory in self.trajectories)
        pending = (t.pending.sigma for t in self.trajectories if t.pending)
        return Step(done, self._steps, next(pending, 0.0))

    @property
    def undecoded(self) -> list[int]:
        """Pictures whose latents are done."""
        all_of_them = enumerate(self.trajectories)
        return [i for i, own in all_of_them if own.done and i not in self._pictures]

    @property
    def complete(self) -> bool:
        """Whether all pictures are there."""
        return len(self._pictures) == self.request.num_images

    def render_previews(self, indices: "range | list[int]") -> Iterator[Preview]:
        """A look at pictures in the making, of those that have been stepped."""
        for i in indices:
            if (denoised := self.trajectories[i].denoised) is not None:
                image = latents.preview_latent(self.model, denoised)
                if image:
                    yield Preview(i, image)

    def decode_picture(self, index: int) -> Iterator[Notice]:
        """Make a picture of its latent, and lay it on the canvas.

        Raises:
            DeviceError: it is not finite.
        """
        latent = self.trajectories[index].latent
        if latent is None:
            raise ValueError(f"picture {index} is not done; step its trajectory first")
        image, notice = latents.decode_latent(self.model, latent)
        self._pictures[index] = self._canvas.compose(image)
        if notice:
            yield Notice(notice)

    def finish(self) -> Finished:
        """Its pictures, all of which are there, with their metadata."""
        pictures = tuple(self._pictures[i] for i in range(self.request.num_images))
        extras = self._extras
        used = metadata.Used(
            loras=[adapter.lora for adapter in extras.adapters],
            nets=[net for net in extras.nets if net],
            embeddings=extras.embeddings,
        )
        records = tuple(
            metadata.record(self.request, i, image.size, self.model, extras.refiner, used)
            for i, image in enumerate(pictures)
        )
        seeds = tuple(self.request.seed + i for i in range(self.request.num_images))
        return Finished(pictures, seeds, records)
