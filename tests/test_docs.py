"""The documentation says what the program does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from overpaint.cli.main import app

ROOT = Path(__file__).parents[1]
COMMANDS = (
    *("edit", "create", "sweep", "serve", "bench", "hint", "info", "doctor"),
    *(f"models {name}" for name in ("list", "add", "show", "remove", "pull")),
    *(f"keys {name}" for name in ("create", "list", "revoke")),
    "usage",
)


def help_of(command: str) -> str:
    arguments = [*command.split(), "--help"]
    environment = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    result = CliRunner().invoke(app, arguments, prog_name="overpaint", env=environment)
    assert result.exit_code == 0, result.output
    return "\n".join(line.rstrip() for line in result.output.strip().splitlines())


def reference() -> str:
    parts = ["# Options\n\nWritten by `python -m tests.test_docs`; a test keeps it true.\n"]
    parts += [f"## overpaint {name}\n\n```\n{help_of(name)}\n```\n" for name in COMMANDS]
    return "\n".join(parts)


def test_the_options_are_those_of_the_program() -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == reference()


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{page} links to {target}"


def test_the_commands_of_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"^    (?:\.venv/bin/)?overpaint (\w+)", text, re.MULTILINE))
    assert named == {command.split()[0] for command in COMMANDS}


@pytest.mark.parametrize("code", ["import overpaint", "import overpaint.cli.main"])
def test_torch_is_imported_only_when_needed(code: str) -> None:
    script = f"import sys; {code}; print('torch' in sys.modules or 'diffusers' in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "False"


if __name__ == "__main__":
    (ROOT / "docs" / "cli.md").write_text(reference())
