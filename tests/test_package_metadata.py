"""The package as a registry shows it, and how it starts."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager
from trove_classifiers import classifiers

import overpaint

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project() -> "ProjectMetadata[Any]":
    return ProjectMetadata(str(ROOT), PluginManager())


def test_readme_on_a_registry_has_absolute_links_only(project: "ProjectMetadata[Any]") -> None:
    source = project.core.urls["Source"]
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]*)\)", project.core.readme)
    assert f"{source}/raw/HEAD/docs/images/before-after.png" in [url for _, url in links]
    assert f"{source}/blob/HEAD/docs/guides/install.md" in [url for _, url in links]
    assert all(url.startswith("https://") for _, url in links)
    assert all("/raw/" in url for image, url in links if image)
    own = [url.split("/HEAD/")[1] for _, url in links if url.startswith(source)]
    assert all((ROOT / path).exists() for path in own)
    assert project.core.readme_content_type == "text/markdown"


def test_metadata_names_urls_and_known_classifiers(project: "ProjectMetadata[Any]") -> None:
    assert {"Source", "Documentation", "Changelog", "Issues"} <= set(project.core.urls)
    assert set(project.core.classifiers) <= set(classifiers)
    assert "Typing :: Typed" in project.core.classifiers
    assert (Path(overpaint.__file__).parent / "py.typed").is_file()


def test_python_m_overpaint_runs_the_command_line() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "overpaint", "--version"], capture_output=True, text=True, check=True
    )
    assert ran.stdout == f"overpaint {overpaint.__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_show_completion_prints_a_script_of_the_shell(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from overpaint.cli.main import main

    monkeypatch.setattr("typer.completion._get_shell_name", lambda: shell)
    with pytest.raises(SystemExit) as ended:
        main(["--show-completion"])
    assert not ended.value.code
    assert "_OVERPAINT_COMPLETE" in capsys.readouterr().out


def test_no_file_of_the_package_is_longer_than_400_lines() -> None:
    lengths = {
        path.relative_to(ROOT): len(path.read_text("utf-8").splitlines())
        for path in (ROOT / "src").rglob("*.py")
    }
    assert {path: lines for path, lines in lengths.items() if lines > 400} == {}
