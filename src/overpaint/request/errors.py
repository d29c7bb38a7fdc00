"""Translate pydantic's validation errors into `RequestError`."""

from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from overpaint.errors import MAX_NAME_CHARS, RequestError, did_you_mean, quote_value
from overpaint.request.synonyms import describe_synonym, describe_value

MAX_PROBLEMS_SHOWN = 10
"""Problems of one request that its error describes; the others are counted."""

WHOLE_VALUE = "request"
"""The field of an error about a value that has no fields, such as a number in place of a LoRA."""


def translate_validation_error(error: ValidationError, model: type[BaseModel]) -> RequestError:
    """Return one error that describes every problem; its field is that of the first problem."""
    wrong = error.errors(include_url=False)
    problems = [
        (_field_path(each["loc"]), _describe_problem(each, model))
        for each in wrong[:MAX_PROBLEMS_SHOWN]
    ]
    omitted = len(wrong) - len(problems)
    more = [f"There are {omitted} more problems."] if omitted else []
    field, message = problems[0]
    return RequestError(field, " ".join([message, *(f"{f}: {m}" for f, m in problems[1:]), *more]))


def _field_path(location: tuple[int | str, ...]) -> str:
    # Later strings name members of a union and would confuse a user.
    named = [
        str(p)[:MAX_NAME_CHARS] for i, p in enumerate(location) if i == 0 or isinstance(p, int)
    ]
    return ".".join(named) or WHOLE_VALUE


def _describe_problem(problem: Any, model: type[BaseModel]) -> str:
    field, value = str(next(iter(problem["loc"]), "")), problem["input"]
    match problem["type"]:
        case "extra_forbidden":
            known = model.model_fields
            hint = describe_synonym(field, known) or did_you_mean(field, known)
            return f"There is no such field.{hint}"
        case "finite_number":
            return f"{quote_value(value)} is not finite. {_describe_bounds(model, field)}"
        case "greater_than_equal" | "less_than_equal":
            bounds = _describe_bounds(model, field) + describe_value(field, value)
            return f"{quote_value(value)} is out of range. {bounds}"
        case "string_pattern_mismatch":  # Only prompts have a pattern.
            return f"{quote_value(value)} contains a NUL character. Remove it."
        case "multiple_of":
            step = problem["ctx"]["multiple_of"]
            below = value // step * step
            return (
                f"{quote_value(value)} is not a multiple of {step}. The nearest are {below} and "
                f"{below + step}."
            )
        case _:
            hint = describe_value(field, value)
            return f"{quote_value(value)}: {problem['msg']}.{hint}"


@cache
def _describe_bounds(model: type[BaseModel], field: str) -> str:
    """Return a sentence with the bounds of a field, read from its JSON schema."""
    schema = model.model_json_schema()["properties"].get(field, {})
    for part in (schema, *schema.get("anyOf", ()), *schema.get("prefixItems", ())):
        for inner in (part, *part.get("prefixItems", ())):
            if "minimum" in inner:
                return f"It must be {inner['minimum']} to {inner['maximum']}."
    return "See the field's description."
