"""The noise schedule that a checkpoint was trained with."""

from dataclasses import dataclass
from typing import Literal

Prediction = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True)
class NoiseConfig:
    """How noise was added in training, in the words of a diffusers scheduler config.

    Attributes:
        steps: number of training timesteps.
        beta_start: first beta.
        beta_end: last beta.
        beta_schedule: "scaled_linear" or "linear".
        prediction: what the network's output means.
        zero_terminal_snr: betas rescaled to zero terminal SNR (arXiv 2305.08891, algorithm 1).
        steps_offset: added to "leading" timesteps.
    """

    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Literal["scaled_linear", "linear"] = "scaled_linear"
    prediction: Prediction = "epsilon"
    zero_terminal_snr: bool = False
    steps_offset: int = 1
