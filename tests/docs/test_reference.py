"""The reference pages and the README agree with the program."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from docs.generate import (
    LIMITS,
    PAGES,
    REFERENCE,
    cli_page,
    commands,
    http_page,
    limits_page,
    metrics_page,
    openapi_document,
    python_page,
    request_page,
    setting_default,
    settings_page,
)
from overpaint import Painter, Result
from overpaint.cli.main import app
from overpaint.request import Request
from overpaint.request.parts import Control, Lora
from overpaint.server.settings import ServerSettings

from .prose import public_pages

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "overpaint"


def help_of(command: str) -> str:
    arguments = [*command.split()[1:], "--help"]
    environment = {"COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"}
    result = CliRunner().invoke(app, arguments, prog_name="overpaint", env=environment)
    assert result.exit_code == 0, result.output
    return result.output


def test_table_of_decisions_has_every_decision():
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"\[\d{4}\]\((\S+)\)", (folder / "README.md").read_text("utf-8"))
    assert listed == sorted(path.name for path in folder.glob("0*.md"))


@pytest.mark.parametrize("command", commands())
def test_cli_page_has_the_options_that_help_prints(command: str) -> None:
    page = cli_page()
    start = page.index(f"## {command}\n")
    section = page[start : page.find("\n## ", start + 1)]
    text = help_of(command)
    printed = set(re.findall(r"^│[ *]+(--[a-z][\w-]+)", text, re.MULTILINE)) - {"--help"}
    described = set(re.findall(r"^\| `(--[a-z][\w-]+)`", section, re.MULTILINE))
    assert described == printed


def test_python_page_describes_every_method_and_its_arguments() -> None:
    page = python_page()
    for own in (Painter, Result):
        for name, method in vars(own).items():
            if name.startswith("_") or not inspect.isfunction(method):
                continue
            start = page.index(f"### {own.__name__}.{name}\n")
            section = page[start : page.find("\n###", start + 1)]
            described = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
            parameters = [n for n in inspect.signature(method).parameters if n != "self"]
            assert set(parameters) <= set(described), (name, described)


def test_cli_page_lists_every_command() -> None:
    listed = re.findall(r"^## (overpaint .+)$", cli_page(), re.MULTILINE)
    assert listed == list(commands())
    assert {"overpaint edit", "overpaint serve", "overpaint keys create"} <= set(listed)


@pytest.mark.parametrize("model", [Request, Control, Lora])
def test_request_page_describes_every_field(model: type[Request]) -> None:
    page = request_page()
    for name in model.model_fields:
        rows = re.findall(rf"^\| `{name}` \|.*\| (.*) \|$", page, re.MULTILINE)
        assert any(rows), name


def test_http_page_lists_every_route() -> None:
    page = http_page()
    for path, operations in openapi_document()["paths"].items():
        for method in operations:
            assert f"### {method.upper()} {path}\n" in page


def test_limits_page_resolves_every_number() -> None:
    page = limits_page()
    for limits in LIMITS.values():
        for limit in limits:
            numbers = (setting_default(n) if isinstance(n, str) else n for n in limit.numbers)
            assert all(number > 0 for number in numbers)
            assert f"| {limit.subject} |" in page


def test_settings_page_describes_every_setting() -> None:
    page = settings_page()
    for name, field in ServerSettings.model_fields.items():
        names = [name]
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names = [f"{name}.{inner}" for inner in field.annotation.model_fields]
        for each in names:
            rows = re.findall(rf"^\| `{each}` \|.*\| (.*) \|$", page, re.MULTILINE)
            assert any(rows), each


def test_metrics_page_names_the_metrics_that_guides_name() -> None:
    page = metrics_page()
    operate = (ROOT / "docs" / "guides" / "operate.md").read_text("utf-8")
    named = set(re.findall(r"`(overpaint_[a-z_]+)", operate))
    assert named
    assert all(f"`{name}`" in page for name in named)


def test_logs_page_names_every_event_of_the_server() -> None:
    page = (REFERENCE / "logs.md").read_text("utf-8")
    source = "\n".join(path.read_text("utf-8") for path in (SOURCE / "server").rglob("*.py"))
    events = set(re.findall(r'logging\.[A-Z]+(?: if [^,]+)?,\s*"([a-z ]+)"', source))
    assert {"webhook tried", "picture not fetched"} <= events
    for event in events:
        assert f"`{event}`" in page, event


@pytest.mark.parametrize("path", public_pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_pages_lead_to_files(path: Path) -> None:
    generated = {REFERENCE / name for name in PAGES}
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text("utf-8")):
        if "://" not in target:
            there = (path.parent / target).resolve()
            assert there.exists() or there in generated, f"{path.name} links to {target}"


def test_commands_of_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    named = set(re.findall(r"^(?:\.venv/bin/)?overpaint (\w+)", text, re.MULTILINE))
    assert {"edit", "create", "serve"} <= named
    assert named <= {command.split()[1] for command in commands()}


def test_readme_names_the_two_commands_of_a_checkout() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert "make demo" in text
    assert "make test" in text


def test_names_of_tables_in_contributing_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    source = "\n".join(path.read_text("utf-8") for path in SOURCE.rglob("*.py"))
    names = set(re.findall(r"`([A-Z]{2,}[A-Z_]*)`", text)) - {"REQUEST_HEAD_TIMEOUT_S"}
    assert "SAMPLERS" in names
    for name in names:
        assert re.search(rf"^{name}\b", source, re.MULTILINE), name


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_paths_and_make_targets_of_a_page_exist(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    for path in re.findall(r"(?<![\w/])((?:tests|docs|src|benchmarks)/[\w./-]+\w)", text):
        assert (ROOT / path).exists(), path
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for first, second in re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)$", text, re.MULTILINE):
        assert (first or second) in targets


@pytest.mark.parametrize("code", ["import overpaint", "import overpaint.cli.main"])
def test_import_without_painting_does_not_import_torch(code: str) -> None:
    script = f"import sys; {code}; print('torch' in sys.modules or 'diffusers' in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "False"
