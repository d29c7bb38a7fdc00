"""Windows of a tiled network: they cover the latent, blend, and receive their position."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from overpaint.diffusion.conditioning import Conditioning, Row
from overpaint.diffusion.denoise import Trajectory, step
from overpaint.diffusion.planner import plan
from overpaint.diffusion.schedule import NoiseSchedule
from overpaint.diffusion.tiling.network import TiledNetwork
from overpaint.diffusion.tiling.windows import (
    MIN_OVERLAP_FRACTION,
    list_window_starts,
    make_edge_ramp,
)
from overpaint.models.noise_config import NoiseConfig
from overpaint.nn.attention import Context
from overpaint.request import Request
from tests.tiny import tiny_model


class Local:
    """A network that processes each cell separately and records its windows."""

    schedule = NoiseSchedule(NoiseConfig())
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.calls: list[list[tuple[list[float], tuple[int, ...]]]] = []

    def predict(self, rows: Sequence[Row]) -> Tensor:
        self.calls.append([(r.conditioning.size_ids[0].tolist(), r.x.shape) for r in rows])
        return torch.cat([row.x.sin() * row.sigma for row in rows])

    def denoised(self, x: Tensor, sigma: float, prediction: Tensor) -> Tensor:
        return x - sigma * prediction


def row(height: int, width: int, sigma: float = 2.0) -> Row:
    x = torch.randn((1, 4, height, width), generator=torch.Generator().manual_seed(height))
    ids = torch.tensor([[8.0 * height, 8.0 * width, 0, 0, 8.0 * height, 8.0 * width]])
    return Row(x, sigma, Conditioning(Context(torch.zeros(1, 77, 8)), torch.zeros(1, 8), ids))


@pytest.mark.parametrize("length", [16, 17, 20, 28, 40, 64, 100])
def test_windows_cover_the_length_and_overlap(length: int) -> None:
    found = list_window_starts(length, 16)
    assert found[0] == 0
    assert found[-1] == max(0, length - 16)
    assert all(b - a <= 16 * (1 - MIN_OVERLAP_FRACTION) + 1 for a, b in itertools.pairwise(found))
    assert len(found) <= 1 + -(-(length - 16) // 12) if length > 16 else len(found) == 1


def test_window_weights_fall_only_toward_adjacent_windows() -> None:
    assert make_edge_ramp(0, 16, 16).tolist() == [1.0] * 16
    first, last = make_edge_ramp(0, 16, 28), make_edge_ramp(12, 16, 28)
    assert first[:12].min() == 1
    assert first[12:].tolist() == last[:4].flip(0).tolist()
    assert (make_edge_ramp(4, 16, 28) > 0).all()


@pytest.mark.parametrize(("height", "width"), [(16, 16), (24, 40), (12, 50)])
def test_tiled_network_of_a_local_network_matches_that_network(height: int, width: int) -> None:
    network = Local()
    rows = [row(height, width), row(height, width, 0.5)]
    tiled = TiledNetwork(network, 16, 8, cells=3 * 256).predict(rows)
    torch.testing.assert_close(tiled, Local().predict(rows), atol=1e-6, rtol=1e-6)
    assert all(len(call) <= 3 for call in network.calls)


def test_window_receives_its_position_in_the_size_ids() -> None:
    network = Local()
    TiledNetwork(network, 16, 8, cells=10**6).predict([row(16, 28)])
    ((first, _), (second, shape)) = network.calls[0]
    assert first == [128, 224, 0, 0, 128, 128]
    assert second == [128, 224, 0, 96, 128, 128]
    assert shape == (1, 4, 16, 16)


def test_stage_larger_than_the_model_draws_is_tiled() -> None:
    model = tiny_model()
    asked = Request(prompt="a red cat", num_inference_steps=2, refine_steps=2, upscale=2.5, seed=1)
    (own,) = plan(asked, model).plans
    assert own.then is not None
    assert isinstance(own.then.plan.network, TiledNetwork)
    trajectory = Trajectory(own)
    while not trajectory.done:
        step([trajectory])
    assert trajectory.latent is not None
    assert trajectory.latent.shape == (1, 4, 40, 40)
    assert trajectory.latent.isfinite().all()
