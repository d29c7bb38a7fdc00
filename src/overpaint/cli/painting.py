"""One model for all requests of a command: load it, paint, and report."""

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import typer

from overpaint.cli.common import Common
from overpaint.cli.environment import read_home, read_models_dirs
from overpaint.cli.model_parts import choose_parts, note_other_parts
from overpaint.cli.progress import Bar
from overpaint.cli.terminal import Terminal, echo, explain_full_stdout
from overpaint.events import Finished, Notice, Step
from overpaint.request import Request
from overpaint.system.processors import set_threads

if TYPE_CHECKING:
    from PIL.Image import Image

    from overpaint.models.model import Model
    from overpaint.painter import Painter
    from overpaint.provenance.importers.collector import ImportedSettings

DEFAULT_MODEL = "miniature"

DEFAULT_MODEL_NOTE = (
    "without --model, the miniature paints: a small model for trying Overpaint, with toy pictures "
    "of 128x128 pixels. For photos, use SDXL: --model sdxl (downloads 7 GB at the first use)."
)


@dataclass(frozen=True)
class Painted:
    """The result of a request."""

    result: Finished

    seconds: float
    """The time of painting, without loading."""


class Session:
    """Paints the requests of a command. The first request loads the model.

    Attributes:
        terminal: shows notes and progress.
        common: the options of the command.
        painted: the number of requests that are done.
    """

    def __init__(
        self,
        terminal: Terminal,
        common: Common,
        found: "ImportedSettings | None",
        requests: int = 1,
    ):
        """Load nothing yet.

        Args:
            terminal: shows notes and progress.
            common: the options of the command.
            found: the settings of the `--like` picture.
            requests: the number of requests that follow.
        """
        self.terminal, self.common = terminal, common
        self.painted = 0
        self._found = found
        self._record: Mapping[str, Any] = (found.record if found else None) or {}
        self._bar = terminal.make_bar(requests)
        self._painter: Painter | None = None

    def paint(self, request: Request) -> Painted:
        """Run a request.

        Raises:
            OverpaintError: see `Painter.stream` and `overpaint.load`.
        """
        set_threads(self.common.threads)  # before torch is imported
        from overpaint.imaging import canvas  # imports OpenCV

        canvas.check_pictures(request)
        self._painter = self._painter or self._load(request)
        result: Finished | None = None
        start = perf_counter()
        steps = request.steps_to_run * request.num_images
        with self._bar.painting(self.painted, steps), watch_first_call(self._painter, self._bar):
            for event in self._painter.stream(request):
                match event:
                    case Notice(message):
                        self.terminal.note(message)
                    case Step():
                        self._bar.show(event)
                    case Finished():
                        result = event
                    case _:
                        pass
        if result is None:
            raise AssertionError("the stream ended without Finished")
        self.painted += 1
        self._note_other_files(result)
        return Painted(result, perf_counter() - start)

    def finish(self, name: str, image: "Image") -> "Image":
        """Return a picture with a watermark if the command asks for one.

        Prints a note if the picture is too small for a watermark.
        """
        if not self.common.watermark:
            return image
        from overpaint.provenance import watermark  # imports OpenCV

        made, why = watermark.add_watermark(image)
        if why:
            self.terminal.note(f"{name}: {why}")
        return made

    def _load(self, request: Request) -> "Painter":
        """Load the model and the add-ons of the first request; note other weights."""
        import overpaint  # load() imports torch

        name, dtype = self._choose_model()
        parts = choose_parts(self.common, self._record, request)
        loaded: dict[str, Model] = {}
        with self.terminal.waiting(f"loading {name}"):
            painter = overpaint.load(
                name,
                device=self.common.device,
                dtype=dtype,
                vram_gb=self.common.vram,
                ram_gb=self.common.ram,
                plan_for=request,
                vae=parts["vae"],
                unet=parts["unet"],
                text_encoder=parts["text_encoder"],
                text_encoder_2=parts["text_encoder_2"],
                home=read_home(),
                models_dirs=read_models_dirs(self.common.models_dirs),
            )
            loaded["model"] = painter.model
        with self.terminal.waiting("loading refiner, ControlNets and LoRAs"):
            if refiner := painter.addon_loader.load(request).refiner:
                loaded["refiner"] = refiner
        for part, model in loaded.items():
            before = self._record.get(part)
            if before and before["sha256"] != model.sha256:
                self.terminal.note(
                    f"the weights of the {part} differ from those that made the picture; "
                    "pixels may differ."
                )
        note_other_parts(self.terminal, self._record, painter.model)
        return painter

    def _choose_model(self) -> tuple[str, str]:
        """Return the name and the dtype of the model."""
        name, dtype = self.common.model, self.common.dtype
        recorded = self._record.get("model", {})
        if name is None:
            name = recorded.get("name", DEFAULT_MODEL)
            if self._found and not recorded and self._found.model:
                self.terminal.note(
                    f"the settings are for the model {self._found.model!r}, not for {name!r}."
                )
            if not recorded:
                self.terminal.note(DEFAULT_MODEL_NOTE)
        return name, (recorded.get("dtype") or dtype if dtype == "auto" else dtype)

    def _note_other_files(self, result: Finished) -> None:
        """Note the add-ons whose files differ from those that made the `--like` picture."""
        kinds = {"LoRA": "loras", "ControlNet": "nets", "embedding": "embeddings"}
        for what, files in kinds.items():
            before = self._record.get(f"{files}_sha256", {})
            for name, digest in result.metadata[0][f"{files}_sha256"].items():
                if name in before and before[name] != digest:
                    self.terminal.note(
                        f"the {what} {name} differs from the file that made the picture; "
                        "pixels may differ."
                    )


@contextmanager
def watch_first_call(painter: "Painter", bar: Bar) -> Generator[None]:
    """Show the time that is left already during the first network call, which may take minutes."""
    network = getattr(painter.model, "unet", None)
    if network is None or not bar.visible:
        yield
        return
    from overpaint.nn.forward_progress import watch_calls  # imports torch

    with watch_calls(network, bar.show_calls):
        yield


def report(
    terminal: Terminal,
    paths: Sequence[Path],
    seeds: Sequence[int],
    size: tuple[int, int],
    seconds: float,
    records: Sequence[dict[str, Any]],
    as_json: bool,
) -> None:
    """Print the results of a request: paths on stdout, a summary on stderr; or a JSON object."""
    model = records[0]["model"]["name"]
    if as_json:
        result = {
            "outputs": [str(path) for path in paths],
            "model": model,
            "seeds": list(seeds),
            "size": list(size),
            "seconds": round(seconds, 3),
            "notices": terminal.notes,
            "metadata": list(records),
        }
        with explain_full_stdout(paths):
            typer.echo(json.dumps(result))
        return
    with explain_full_stdout(paths):
        for path in paths:
            echo(path)
    made = f"{model}, {size[0]}x{size[1]}, seed {', '.join(map(str, seeds))}, {seconds:.1f} s"
    terminal.say(made)
