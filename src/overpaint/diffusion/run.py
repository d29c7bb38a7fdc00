"""A running request: its trajectories, its progress, its previews and its finished pictures.

The library and the engine decide which trajectories take a step and when.
"""

from collections.abc import Iterator
from dataclasses import replace

from PIL.Image import Image

from overpaint.diffusion import latents
from overpaint.diffusion.denoise import Trajectory
from overpaint.diffusion.planner import plan
from overpaint.events import Finished, Notice, Preview, Step
from overpaint.imaging import codec
from overpaint.models.addons import AddonLoader
from overpaint.models.model import Model
from overpaint.models.presets import settle_request
from overpaint.provenance import metadata
from overpaint.request import Request


class Run:
    """A running request.

    Attributes:
        model: the model that paints.
        request: the request, with the settings of its preset, or of its few-step LoRA or
            checkpoint.
        trajectories: one per picture; empty if there is nothing to paint.
        notices: messages from planning, for the user.
    """

    def __init__(self, request: Request, model: Model, addon_loader: AddonLoader):
        """Plan a request.

        Raises:
            RequestError, PictureError, ModelError, DeviceError: see `plan` and `settle_request`.
        """
        if request.vae is not None and model.separate_vae_name != request.vae:
            model = model.with_vae(addon_loader.load_vae(request.vae))
        self._decoder = addon_loader.load_decoder(request.decoder) if request.decoder else None
        self.model = model
        self.request, addons, self.notices = settle_request(request, model, addon_loader)
        planned = plan(self.request, model, addons)
        codec.drop_pixels(*self.request.pictures)
        self.notices += planned.notices
        self.trajectories = tuple(map(Trajectory, planned.plans))
        self._steps = sum(own.steps for own in planned.plans)
        self._addons = addons
        self._addon_loader = addon_loader
        self._pictures: dict[int, Image] = {}
        if not self.trajectories and planned.canvas.unpainted:
            copies = range(request.num_images)
            self._pictures = {i: planned.canvas.unpainted.copy() for i in copies}

    @property
    def progress(self) -> Step:
        """The steps done, the steps in total, and the current noise level."""
        done = sum(trajectory.steps_done for trajectory in self.trajectories)
        pending = (t.pending.sigma for t in self.trajectories if t.pending)
        return Step(done, self._steps, next(pending, 0.0))

    @property
    def undecoded(self) -> list[int]:
        """Indices of the pictures whose latents are done but not decoded."""
        trajectories = enumerate(self.trajectories)
        return [i for i, own in trajectories if own.done and i not in self._pictures]

    @property
    def complete(self) -> bool:
        """True if all pictures are decoded."""
        return len(self._pictures) == self.request.num_images

    def render_previews(self, indices: "range | list[int]") -> Iterator[Preview]:
        """Yield a preview of each of these pictures that has taken a step."""
        for i in indices:
            if (denoised := self.trajectories[i].denoised) is not None:
                decoder = self._decoder or self._addon_loader.find_preview_decoder()
                image = latents.preview_latent(self.model, decoder, denoised)
                if image:
                    yield Preview(i, image)

    def decode_picture(self, index: int) -> Iterator[Notice]:
        """Decode a picture and compose it with the canvas; yield the notices of the VAE.

        Raises:
            DeviceError: the latent or the picture is not finite.
            ValueError: the picture's trajectory is not done.
        """
        trajectory = self.trajectories[index]
        latent, canvas = trajectory.latent, trajectory.plan.canvas
        if latent is None:
            raise ValueError(f"Picture {index} is not done; step its trajectory until it is.")
        if self._decoder:
            image, notice = latents.decode_tiny(self.model, self._decoder, latent), None
        else:
            image, notice = latents.decode_latent(self.model, latent)
        self._pictures[index] = canvas.compose(image) if canvas else image
        if notice:
            yield Notice(notice)

    def finish(self) -> Finished:
        """Return the pictures with their metadata. All pictures must be decoded."""
        pictures = tuple(self._pictures[i] for i in range(self.request.num_images))
        addons = self._addons
        used = metadata.UsedFiles(
            loras=addons.adapters,
            nets=[
                replace(net, name=control.net or net.name)
                for control, net in zip(self.request.controls, addons.nets, strict=True)
                if net
            ],
            embeddings=addons.embeddings,
            decoder=self._decoder,
        )
        records = tuple(
            metadata.make_record(self.request, i, image.size, self.model, addons.refiner, used)
            for i, image in enumerate(pictures)
        )
        return Finished(pictures, self.request.picture_seeds, records)
