"""Step times: measured by `overpaint bench`, or assumed.

A step's time is nearly a linear function of its rows. The constant part is the gain of batching.
"""

import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overpaint.errors import OutputError, PictureError, RequestError
from overpaint.registry import PRESETS
from overpaint.system import atomic_files

if TYPE_CHECKING:
    from overpaint.request import Request

GAIN = 1.2
"""Factor in throughput that makes a longer step for all requests worth more rows.

With a factor of 1.1 (32 rows instead of 16 for the miniature on two cores), the median of short
requests was 2.0 s instead of 1.3 s.
"""

NATIVE_CELLS = 128 * 128
"""Latent cells of a picture of 1024 x 1024 pixels."""

ASSUMED_CELLS = {"cpu": 2 * 64 * 64, "accelerator": 4 * NATIVE_CELLS}
"""Latent cells of a step, over all rows, without measurements.

On an accelerator, where SDXL's time per row is constant: two pictures of 1024² with guidance. On a
CPU: one of 512².
"""

MOST = 32
"""Largest number of rows of a step."""


def kind_of(device: str) -> str:
    """Return the kind of a device, "cpu" or "accelerator", for torch's name of its type."""
    return "cpu" if device == "cpu" else "accelerator"


@dataclass(frozen=True)
class Profile:
    """Seconds of a network call, by latent shape and rows.

    Attributes:
        device: "cpu" or "accelerator"; decides the assumed times.
        measured: seconds by rows, for each (height, width) of a latent.
        model: name of the measured model; "" without measurements.
        dtype: number format of the measured model.
    """

    device: str = "cpu"
    measured: Mapping[tuple[int, int], Mapping[int, float]] = field(
        default_factory=dict[tuple[int, int], Mapping[int, float]]
    )
    model: str = ""
    dtype: str = ""

    def cap(self, height: int, width: int) -> int:
        """Return the largest number of rows that a step of a latent shape should have.

        It is the smallest number whose throughput is within a factor of `GAIN` of the best measured
        one. Without measurements it is the number of rows with `ASSUMED_CELLS` together. It is at
        least two: a picture with its guidance.
        """
        times = self.measured.get((height, width))
        if not times:
            return min(MOST, max(2, ASSUMED_CELLS[self.device] // (height * width)))
        throughput = {rows: rows / seconds for rows, seconds in times.items() if rows > 1}
        best = max(throughput.values(), default=0.0)
        return min((rows for rows in throughput if GAIN * throughput[rows] >= best), default=2)

    def seconds(self, height: int, width: int, rows: int) -> float:
        """Return the seconds of a step: measured, interpolated or assumed.

        Without measurements a row of SDXL's native size takes one second. That is enough to compare
        requests with each other.
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
        """Estimate the seconds of a request that runs alone, over all windows of an extension.

        Args:
            request: not planned yet, so that a size that follows from its picture counts as native.
            native: side in pixels that the model draws.
            factor: pixels per latent cell.
        """
        request = request.fill_unset(PRESETS[request.preset])
        height = (request.height or native) // factor
        width = (request.width or native) // factor
        rows = 2 if request.guided else 1
        area = (request.width or native) * (request.height or native)
        second = request.count_second_stage_pixels(area) / area
        steps = request.steps_to_run + request.refine_steps_to_run * second
        steps *= 1 + request.langevin_steps / rows
        passes = _count_passes(request, native)
        return self.seconds(height, width, rows) * steps * request.num_images * passes

    @classmethod
    def read(cls, path: Path) -> "Profile":
        """Read a profile that `write` has written.

        Raises:
            OutputError: the file is not a profile.
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
                f"{path} is not a profile: {error!r}. Make another one with `overpaint bench`."
            ) from error

    def write(self, path: Path) -> None:
        """Write the profile as JSON.

        Raises:
            OutputError: the file cannot be written.
        """
        seconds = {f"{h}x{w}": dict(times) for (h, w), times in self.measured.items()}
        about = {"model": self.model, "dtype": self.dtype, "device": self.device}
        data = json.dumps(about | {"seconds": seconds}, indent=2) + "\n"
        try:
            atomic_files.write_file(path, data.encode())
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}.") from error


def _count_passes(request: "Request", native: int) -> int:
    """Return how often the steps of a request run: once, or for each window of an extension."""
    # The command line reads this file, and does without NumPy and Pillow until a picture is there.
    from overpaint.imaging.extension import count_windows

    try:
        windows = count_windows(request, native)
    except (PictureError, RequestError):  # Such a request fails when it begins.
        return 1
    has_mask = request.mask is not None or request.mask_from is not None
    return windows + 1 if has_mask or not windows else windows
