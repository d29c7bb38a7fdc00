"""Classifier-free guidance, as a value and one function of two predictions."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """How strongly, and where, a prediction is pushed from the unconditional one.

    Attributes:
        scale: w of arXiv 2207.12598 in Imagen's reading (arXiv 2205.11487, equation 2): 1 is the
            conditional prediction itself.
        rescale: φ of arXiv 2305.08891, equation 16: 0 is plain guidance, 1 gives the result the
            conditional prediction's standard deviation.
        interval: the part of the denoising range, from 0 (pure noise) to 1 (clean), outside
            which there is no guidance and no unconditional row (after arXiv 2404.07724).
    """

    scale: float
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)

    def acts(self, progress: float) -> bool:
        """Whether guidance acts at this point, 0 (pure noise) to 1 (clean)."""
        return self.scale > 1 and self.interval[0] <= progress <= self.interval[1]

    def __call__(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """The guided prediction, from two of [1, C, h, w]."""
        guided = unconditional + self.scale * (conditional - unconditional)
        if not self.rescale:
            return guided
        dims = list(range(1, guided.ndim))
        matched = guided * (conditional.std(dims, keepdim=True) / guided.std(dims, keepdim=True))
        return self.rescale * matched + (1 - self.rescale) * guided
