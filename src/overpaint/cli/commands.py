"""Commands whose errors suggest the right option for names of other programs."""

from typing import Any

from typer.core import TyperCommand

from overpaint.cli.settings import FLAG_OF_FIELD
from overpaint.request.synonyms import find_synonym

OPTION_SYNONYMS = {
    "checkpoint": "--model",
    "ckpt": "--model",
    "precision": "--dtype",
    "half": "--dtype",
    "gpu": "--device",
    "cuda": "--device",
    "outdir": "--output",
    "output_dir": "--output",
    "input": "PICTURE",
    "image": "PICTURE",
    "init_image": "PICTURE",
    "input_image": "PICTURE",
    "num_threads": "--threads",
    "cpus": "--threads",
    "metadata_from": "--like",
}
"""Names of options that set no field of a request, in other programs."""


class HintingCommand(TyperCommand):
    """A command that knows the names of its options in other programs."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; name the right option in the error for an unknown one."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            # typer does not publish the class of this error.
            if hasattr(error, "possibilities") and (hint := self._suggest(vars(error))):
                vars(error)["possibilities"] = [hint]
            raise

    def _suggest(self, error: dict[str, Any]) -> str | None:
        """Return the option or argument of this command that has the meant effect."""
        name = str(error["option_name"]).strip("-").replace("-", "_").casefold()
        field = find_synonym(name) or name
        place = OPTION_SYNONYMS.get(name) or FLAG_OF_FIELD.get(field, field.upper())
        own = {flag for parameter in self.params for flag in (*parameter.opts, _label(parameter))}
        return place if place in own else None


def _label(parameter: Any) -> str:
    """Return the name of an argument in the help."""
    return (parameter.metavar or parameter.name.upper()).rstrip(".")
