"""Constructors for Python programs: they take paths, arrays and NumPy numbers as fields.

`Control(kind="canny", image="edges.png")` reads the file. `Control.model_validate` does not: its
fields come from elsewhere, such as the JSON of the server's clients, whose texts must open nothing.
"""

import os
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel

from overpaint.picture import Picture
from overpaint.picture_sources import read_source


class ConstructorType(type(BaseModel)):
    """The metaclass of models whose constructors read their fields with `read_arguments`.

    Pydantic calls a class's `__init__` for every validation, but only Python calls the class.
    """

    if not TYPE_CHECKING:  # Type checkers read the parameters of `__init__`.

        def __call__(cls, *args: Any, **fields: Any) -> Any:
            """Make an instance."""
            return super().__call__(*args, **cls.read_arguments(fields))


def read_arguments(model: type[BaseModel], fields: dict[str, Any]) -> dict[str, Any]:
    """Return a constructor's arguments as the values that the fields of a model have.

    Raises:
        PictureError: a picture cannot be read; see `read_source`.
    """
    pictures = {
        name for name, field in model.model_fields.items() if Picture in get_args(field.annotation)
    }
    return {
        name: read_source(value, name)
        if name in pictures and value is not None
        else to_plain_value(value)
        for name, value in fields.items()
    }


def to_plain_value(value: Any) -> Any:
    """Return a value without the types of other libraries, also inside lists, tuples and dicts.

    NumPy's numbers and tensors of one number become Python's, arrays become tuples, and paths
    become text.
    """
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return tuple(map(to_plain_value, value))
    if isinstance(value, dict):
        return {name: to_plain_value(inner) for name, inner in value.items()}
    axes = getattr(value, "ndim", None)  # neither NumPy nor torch is imported for this
    if axes is not None and hasattr(value, "tolist"):
        return to_plain_value(value.tolist())
    return value
