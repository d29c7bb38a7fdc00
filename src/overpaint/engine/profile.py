"""How long steps take: measured by `overpaint bench`, or assumed.

A step's time over its rows is nearly a line; what batching brings is where it starts.
"""

import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overpaint.errors import OutputError
from overpaint.system import atomic_files

if TYPE_CHECKING:
    from overpaint.request import Request

GAIN = 1.2
"""What more rows must bring in throughput to be worth everybody's longer step. Where twice the rows
bring a tenth, as 32 in place of 16 for the miniature on two cores, half of all short requests took
2.0 s in place of 1.3."""

NATIVE_CELLS = 128 * 128
"""Of SDXL's own size."""

ASSUMED_CELLS = {"cpu": 2 * 64 * 64, "accelerator": 4 * NATIVE_CELLS}
"""Latent cells of a step, over all rows, where nothing was measured: two pictures of 1024² with
guidance on an accelerator, where SDXL's time per row is flat; one of 512² on a CPU."""

MOST = 32
"""Rows of a step, at most."""


def kind_of(device: str) -> str:
    """The kind of a device, "cpu" or "accelerator", by torch's name of its type."""
    return "cpu" if device == "cpu" else "accelerator"


@dataclass(frozen=True)
class Profile:
    """Seconds of a network call, by latent shape and rows.

    Attributes:
        device: "cpu" or "accelerator", for what is assumed.
        measured: by (height, width) of the latent, seconds by rows.
        model: by name, with which it was measured; "" where nothing was.
        dtype: of that.
    """

    device: str = "cpu"
    measured: Mapping[tuple[int, int], Mapping[int, float]] = field(
        default_factory=dict[tuple[int, int], Mapping[int, float]]
    )
    model: str = ""
    dtype: str = ""

    def cap(self, height: int, width: int) -> int:
        """How many rows of a latent shape a step should have at most.

        As few as come within `GAIN` of the best throughput that was measured; where nothing was, as
        many as have `ASSUMED_CELLS` together. Two at least: a picture with its guidance.
        """
        times = self.measured.get((height, width))
        if not times:
            return min(MOST, max(2, ASSUMED_CELLS[self.device] // (height * width)))
        throughput = {rows: rows / seconds for rows, seconds in times.items() if rows > 1}
        best = max(throughput.values(), default=0.0)
        return min((rows for rows in throughput if GAIN * throughput[rows] >= best), default=2)

    def seconds(self, height: int, width: int, rows: int) -> float:
        """What a step takes: measured, in a line between two that were, or assumed.

        Where nothing was measured, a row of SDXL's own size takes a second; only what is longer
        than what matters then.
        """
        times = self.measured.get((height, width))
        if not times:
            return rows * height * width / NATIVE_CELLS
        known = sorted(times)
        at = min(max(bisect_left(known, rows), 1), len(known) - 1)
        if len(known) == 1:
            return times[known[0]] * rows / known[0]
        low, high = known[at - 1], known[at]
        slope = (times[high] - times[low]) / (high - low)
        return max(times[low] + slope * (rows - low), 0.0)

    def alone(self, request: "Request", native: int = 1024, factor: int = 8) -> float:
        """About what a request takes by itself, in seconds of `seconds`.

        Args:
            request: not planned yet: sizes that follow from its picture are taken as native.
            native: the side that the model draws, in pixels.
            factor: pixels per latent cell.
        """
        height = (request.height or native) // factor
        width = (request.width or native) // factor
        rows = 2 if request.guided else 1
        steps = request.steps_to_run + request.refine_steps_to_run * request.upscale**2
        return self.seconds(height, width, rows) * steps * request.num_images

    @classmethod
    def read(cls, path: Path) -> "Profile":
        """As `write` wrote it.

        Raises:
            OutputError: it is not such a file.
        """
        try:
            found: Any = json.loads(path.read_text("utf-8"))
            measured: dict[tuple[int, int], Mapping[int, float]] = {}
            for shape, times in found["seconds"].items():
                height, width = (int(side) for side in shape.split("x"))
                measured[height, width] = {int(rows): float(s) for rows, s in times.items()}
            about = (str(found[key]) for key in ("model", "dtype"))
            return cls(str(found["device"]), measured, *about)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(
                f"{path} is not a profile: {error!r}. Make it anew with `overpaint bench`."
            ) from error

    def write(self, path: Path) -> None:
        """Write it as JSON.

        Raises:
            OutputError: it cannot be written.
        """
        seconds = {f"{h}x{w}": dict(times) for (h, w), times in self.measured.items()}
        about = {"model": self.model, "dtype": self.dtype, "device": self.device}
        data = json.dumps(about | {"seconds": seconds}, indent=2) + "\n"
        try:
            atomic_files.write_file(path, data.encode())
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}.") from error
