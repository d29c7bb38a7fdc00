"""Send valid and invalid data to every operation of the OpenAPI document.

`python -m tests.stress.fuzz CASES` lets schemathesis generate the cases, half of them invalid, and
the same ones in every run. No status may be 5xx. The document must describe every status, content
type and body. The server must reject invalid data.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast
from unittest import mock

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import AcceptedNegativeData, FailureGroup
from schemathesis.generation.case import Case
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from overpaint.errors import RequestError
from overpaint.server.api.ignored_fields import is_empty
from overpaint.testing import ScriptedEngine
from tests.server.live import running, until

A1111_PATHS = ("/sdapi/", "/internal/", "/controlnet/")
NATIVE_PATHS = "/api/"

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


class Instant(ScriptedEngine):
    """Ends every job with its first step, and ignores its prompt."""

    def submit(self, name: str, request: Any, model: str, **others: Any) -> None:
        brief = request.model_copy(update={"prompt": "", "num_images": 1})
        super().submit(name, brief, model, **others)
        self.jobs[name].steps_done = request.num_inference_steps - 1


@dataclass
class Report:
    """Number of cases by status, and one example of each kind of failure."""

    cases: int = 0
    operations: int = 0
    negative: int = 0
    negatives_accepted: int = 0
    statuses: dict[str, int] = field(default_factory=dict[str, int])
    failures: dict[str, str] = field(default_factory=dict[str, str])
    seconds: float = 0.0

    @property
    def server_errors(self) -> int:
        return sum(count for status, count in self.statuses.items() if status.startswith("5"))

    @property
    def passed(self) -> bool:
        return not (self.server_errors or self.negatives_accepted or self.failures)


def run(folder: Path, cases: int) -> Report:
    """Send at least `cases` requests, evenly to every operation."""
    report, statuses, began = Report(), Counter[str](), time.monotonic()
    nowhere = mock.AsyncMock(side_effect=RequestError("webhook", "nobody is asked here."))
    with (
        running(folder, engine_factory=Instant) as url,
        mock.patch("overpaint.network.client.resolve_host", nowhere),
        requests.Session() as session,
    ):
        until(lambda: session.get(f"{url}/readyz").ok)
        schema: Any = schemathesis.openapi.from_url(f"{url}/openapi.json")
        operations = [each.ok() for each in schema.get_all_operations()]
        report.operations = len(operations)
        varied = [each for each in operations if each.body or list(each.iter_parameters())]
        for operation in operations:
            count = -(-cases // (2 * len(varied))) if operation in varied else 1
            modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
            for mode in modes if operation in varied else modes[:1]:
                ask(session, operation, mode, count, report, statuses)
    report.statuses = dict(sorted(statuses.items()))
    report.seconds = round(time.monotonic() - began, 1)
    return report


def ask(
    session: requests.Session,
    operation: Any,
    mode: GenerationMode,
    count: int,
    report: Report,
    statuses: Counter[str],
) -> None:
    """Send `count` cases to an operation."""

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def once(case: Case[Any]) -> None:
        answer = case.call(session=session)
        report.cases += 1
        report.negative += mode.is_negative
        statuses[str(answer.status_code)] += 1
        try:
            case.validate_response(answer, checks=CHECKS)
        except FailureGroup as group:
            for failure in group.exceptions:
                if isinstance(failure, AcceptedNegativeData) and is_loose(case):
                    continue
                name = f"{operation.label}: {type(failure).__name__}"
                report.negatives_accepted += isinstance(failure, AcceptedNegativeData)
                report.failures.setdefault(name, f"{failure}\n{case.as_curl_command()}"[:2000])

    # An operation that accepts any text has no invalid cases.
    with contextlib.suppress(Unsatisfiable):
        once()


def is_loose(case: Case[Any]) -> bool:
    """Return whether the server may accept a case that is invalid by the document.

    Queries and forms are text: `[7]` in a query is 7, and `{}` in a form is a word. Clients of
    AUTOMATIC1111 send numbers for booleans, and the dialect accepts those. All dialects take null
    and empty values as absent (decision 0014): without them, the body must be valid.
    """
    if case.media_type != "application/json" or case.path.startswith(A1111_PATHS):
        return True
    if case.path.startswith(NATIVE_PATHS):
        return False
    schema = next(each for each in case.operation.body if each.media_type == case.media_type)
    return any(schema.is_valid(drop(case.body, values)) for values in (is_null, is_empty))


def is_null(value: Any) -> bool:
    """Return whether a value is null."""
    return value is None


def drop(body: Any, absent: Callable[[Any], bool]) -> Any:
    """Return a body without the fields, at any depth, whose values count as absent."""
    match body:
        case dict():
            fields = cast(dict[str, Any], body)
            return {
                name: drop(value, absent) for name, value in fields.items() if not absent(value)
            }
        case list():
            return [drop(value, absent) for value in cast(list[Any], body)]
        case _:
            return body


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), int(sys.argv[1]))
    for name, failure in report.failures.items():
        print(name, failure, sep="\n", end="\n\n")
    shown = asdict(report) | {"failures": len(report.failures), "5xx": report.server_errors}
    print(json.dumps(shown | {"passed": report.passed}))
    raise SystemExit(not report.passed)


if __name__ == "__main__":
    main()
