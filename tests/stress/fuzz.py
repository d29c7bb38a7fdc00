"""Every operation of the API's description with data that fits it, and with data that does not.

`python -m tests.stress.fuzz CASES` has schemathesis make them from `/openapi.json`, half of
each, the same ones whenever it runs. Nothing may be answered 5xx; statuses, content types and
bodies must be described; data that does not fit must be refused.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
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
from overpaint.testing import ScriptedEngine
from tests.server.live import running, until

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


class Instant(ScriptedEngine):
    """Ends every job with its first step, whatever its prompt."""

    def submit(self, name: str, request: Any, model: str, **others: Any) -> None:
        brief = request.model_copy(update={"prompt": "", "num_images": 1})
        super().submit(name, brief, model, **others)
        self.jobs[name].steps_done = request.num_inference_steps - 1


@dataclass
class Found:
    """What came of it: cases by their answers' statuses, and each kind of failure once."""

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
    def kept(self) -> bool:
        return not (self.server_errors or self.negatives_accepted or self.failures)


def run(folder: Path, cases: int) -> Found:
    """Ask at least so many things, evenly of every operation."""
    found, statuses, began = Found(), Counter[str](), time.monotonic()
    nowhere = mock.AsyncMock(side_effect=RequestError("webhook", "nobody is asked here."))
    with (
        running(folder, engine_factory=Instant) as url,
        mock.patch("overpaint.server.outbound.client.resolve", nowhere),
        requests.Session() as session,
    ):
        until(lambda: session.get(f"{url}/readyz").ok)
        schema: Any = schemathesis.openapi.from_url(f"{url}/openapi.json")
        operations = [each.ok() for each in schema.get_all_operations()]
        found.operations = len(operations)
        varied = [each for each in operations if each.body or list(each.iter_parameters())]
        for operation in operations:
            count = -(-cases // (2 * len(varied))) if operation in varied else 1
            modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
            for mode in modes if operation in varied else modes[:1]:
                ask(session, operation, mode, count, found, statuses)
    found.statuses = dict(sorted(statuses.items()))
    found.seconds = round(time.monotonic() - began, 1)
    return found


def ask(
    session: requests.Session,
    operation: Any,
    mode: GenerationMode,
    count: int,
    found: Found,
    statuses: Counter[str],
) -> None:
    """Ask an operation so many things."""

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
        found.cases += 1
        found.negative += mode.is_negative
        statuses[str(answer.status_code)] += 1
        try:
            case.validate_response(answer, checks=CHECKS)
        except FailureGroup as group:
            for failure in group.exceptions:
                if isinstance(failure, AcceptedNegativeData) and is_loose(case):
                    continue
                name = f"{operation.label}: {type(failure).__name__}"
                found.negatives_accepted += isinstance(failure, AcceptedNegativeData)
                found.failures.setdefault(name, f"{failure}\n{case.as_curl_command()}"[:2000])

    with contextlib.suppress(Unsatisfiable):  # nothing is negative where any text will do
        once()


def is_loose(case: Case[Any]) -> bool:
    """Whether what does not fit may be taken all the same.

    What is no JSON is text on the wire: `[7]` in a query is 7, and a form's `{}` a word.
    AUTOMATIC1111's clients send numbers for booleans and the like, and are understood as there.
    """
    return case.media_type != "application/json" or case.path.startswith("/sdapi/")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), int(sys.argv[1]))
    for name, failure in found.failures.items():
        print(name, failure, sep="\n", end="\n\n")
    shown = asdict(found) | {"failures": len(found.failures), "5xx": found.server_errors}
    print(json.dumps(shown | {"kept": found.kept}))
    raise SystemExit(not found.kept)


if __name__ == "__main__":
    main()
