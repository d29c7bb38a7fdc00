"""Progress bars of the library, for terminals and notebooks."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

from overpaint.events import Step


class ShowStep(Protocol):
    """A function that shows the progress of a request."""

    def __call__(self, step: Step) -> None:
        """Show a step."""
        ...


@contextmanager
def progress_bar(shown: bool) -> Generator[ShowStep]:
    """Yield a function that draws a bar of the sampler steps on stderr while the block runs.

    The bar has the speed and the remaining time. It appears on terminals and in notebooks, and not
    if stderr is a file or a pipe. It disappears at the end.
    """
    from tqdm import tqdm  # not at the top: importing overpaint is quick

    # tqdm takes None as "if it is a terminal"; the stderr of notebooks says that it is one.
    with tqdm(desc="painting", unit="step", leave=False, disable=None if shown else True) as bar:

        def show(step: Step) -> None:
            bar.total = step.total
            bar.update(step.done - bar.n)

        yield show
