"""The noise schedule that a checkpoint was trained with."""

from dataclasses import dataclass
from typing import Literal

Prediction = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True)
class NoiseConfig:
    """The noise schedule of training, in the terms of a diffusers scheduler config.

    Attributes:
        steps: The number of training timesteps.
        beta_start: The first beta.
        beta_end: The last beta.
        beta_schedule: "scaled_linear" or "linear".
        prediction: The quantity that the network predicts.
        zero_terminal_snr: Whether betas are rescaled to zero terminal SNR (arXiv 2305.08891,
            algorithm 1).
        steps_offset: The offset of "leading" timesteps.
    """

    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Literal["scaled_linear", "linear"] = "scaled_linear"
    prediction: Prediction = "epsilon"
    zero_terminal_snr: bool = False
    steps_offset: int = 1
