"""The commands and programs of the guides work as they are printed.

Each page runs from top to bottom in an empty folder with a few pictures. Commands of `overpaint`
run in this process with the miniature, a few steps each; `curl` and clients speak to one server,
whose engine paints nothing.
"""

from __future__ import annotations

import gc
import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

import overpaint
from overpaint.cli import main as command_line
from overpaint.painter import load as load_model
from overpaint.server.settings_sources import load_settings
from tests.server.live import running

from .blocks import DOCS, ROOT, Block, blocks_of

ADDRESS = "http://127.0.0.1:8000"
STEPS = "3"
"""Steps of a command that names none."""

PAINTS = ("edit", "create", "sweep")

REASONS = {
    "needs SDXL weights",
    "installs packages",
    "downloads a model",
    "downloads a picture",
    "runs until it is stopped",
    "needs a LoRA for SDXL",
    "needs another program's models",
    "needs an embedding for SDXL",
    "needs a trace collector",
    "needs a data folder with jobs",
    "needs Postgres",
    "needs a safety checker",
    "needs a certificate",
    "builds the whole project",
}
"""What a test machine lacks: the only reasons for which a block is not run."""

PAGES = sorted([*DOCS.glob("guides/**/*.md"), *DOCS.glob("concepts/*.md"), ROOT / "README.md"])
EXECUTED = ("shell", "python")

# The clients are not ours to keep tidy.
pytestmark = [
    pytest.mark.smoke,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("server")) as url:
        yield url


@cache
def loaded(model: str) -> overpaint.Painter:
    return load_model(model)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the pictures that guides name; models are loaded once for all pages."""
    sketch = (ROOT / "examples" / "house.png").read_bytes()
    for name in ("house.png", "sketch.png", "photo.png"):
        (tmp_path / name).write_bytes(sketch)
    (tmp_path / "examples").mkdir()
    for name in ("house.png", "boat.png", "cup.png"):
        (tmp_path / "examples" / name).write_bytes((ROOT / "examples" / name).read_bytes())
    with Image.open(tmp_path / "house.png") as house:
        mask = Image.new("L", house.size)
    ImageDraw.Draw(mask).rectangle((80, 160, 360, 440), fill=255)
    mask.save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OVERPAINT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SYNEXA_API_KEY", "KEY")

    def load(model: str = "miniature", **options: Any) -> overpaint.Painter:
        return loaded(model)

    monkeypatch.setattr("overpaint.painter.load", load)
    return tmp_path


class Reader:
    """Runs the blocks of a page, one after another.

    Attributes:
        answer: the output of the block that ran last.
        job: the id in the last answer that had one.
    """

    def __init__(self, url: str, capsys: pytest.CaptureFixture[str]):
        self.answer = ""
        self.job = ""
        self._url = url
        self._capsys = capsys
        self._space: dict[str, Any] = {}

    def run(self, block: Block) -> None:
        """Run a block, or compare it if it is an answer."""
        if block.is_answer:
            self._compare(block)
            return
        text = block.text.replace(ADDRESS, self._url)
        text = text.replace("port=8000", f"port={self._url.rpartition(':')[2]}")
        text = re.sub(r"\bID\b", self.job or "ID", text)
        if block.language == "python":
            code = compile("\n" * (block.line - 1) + text, block.page, "exec")
            exec(code, self._space)
            for name in [name for name in self._space if name.startswith("test_")]:
                self._space.pop(name)(Path.cwd() / name)
            self.answer = self._capsys.readouterr().out
            return
        lines = re.sub(r"\\\n\s*", " ", text).splitlines()
        if all(line.startswith(("overpaint ", "#")) or not line for line in lines):
            for line in lines:
                self._command(line)
        else:
            path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
            ran = subprocess.run(
                ["bash", "-ec", text],
                capture_output=True,
                text=True,
                check=False,
                env=os.environ | {"PATH": path},
            )
            assert ran.returncode == 0, ran.stderr
            self.answer = ran.stdout
        if match := re.search(r'"id": ?"([0-9a-f]{32})"', self.answer):
            self.job = match[1]

    def close(self) -> None:
        """Drop what programs left open: pages do not show how to close clients."""
        self._space.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()

    def _command(self, line: str) -> None:
        words = shlex.split(line, comments=True)[1:]
        if not words:
            return
        if words[0] in PAINTS and "--steps" not in words and "--like" not in words:
            words += ["--steps", STEPS]
        with pytest.raises(SystemExit) as end:
            command_line.main(words)
        captured = self._capsys.readouterr()
        assert not end.value.code, (line, captured)
        self.answer = captured.out

    def _compare(self, block: Block) -> None:
        """Make sure that the answer looks like the one that the page shows."""
        if block.language == "json":
            shown = json.loads(block.text)
            assert shape_of(json.loads(self.answer), shown) == shape_of(shown, shown)
        else:
            pattern = re.sub(r"(\\ )?…|6f0c2d…", ".*", re.escape(block.text.strip()))
            pattern = pattern.replace(re.escape(ADDRESS), re.escape(self._url))
            assert re.fullmatch(pattern, self.answer.strip()), self.answer


def shape_of(value: Any, shown: Any) -> Any:
    """Return the names and types of a JSON value; of objects in `request` and the like a part.

    Args:
        value: to describe.
        shown: the value in the page. Where it has fewer names, as for what a client sent, the
            others of `value` are left out.
    """
    match value, shown:
        case dict(), dict():
            partly = {"prompt"} <= set(shown) and "images" not in shown
            names = set(shown) if partly else set(value)
            return {n: shape_of(value.get(n), shown.get(n)) for n in sorted(names)}
        case list(), list():
            return [shape_of(value[0], shown[0])] if value and shown else len(value) == len(shown)
        case ((int() | float()), _) if not isinstance(value, bool):
            return "number"
        case _:
            return type(value).__name__


def executed(path: Path) -> list[Block]:
    found = [b for b in blocks_of(path) if not b.reason]
    return [b for b in found if b.is_answer or b.language in EXECUTED]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_page_blocks_run_as_printed(
    path: Path,
    folder: Path,
    server: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reader = Reader(server, capsys)
    for block in executed(path):
        try:
            reader.run(block)
        except Exception as error:
            error.add_note(f"{block.page}:{block.line}")
            raise
    reader.close()


def test_blocks_that_are_not_run_have_a_known_reason() -> None:
    reasons = Counter(block.reason for path in PAGES for block in blocks_of(path) if block.reason)
    assert set(reasons) <= REASONS
    assert reasons["needs SDXL weights"] <= 8


def test_toml_blocks_are_settings_of_the_server(tmp_path: Path) -> None:
    file = tmp_path / "overpaint.toml"
    blocks = [b for path in PAGES for b in blocks_of(path) if b.language == "toml"]
    assert blocks
    for block in blocks:
        file.write_text(block.text)
        load_settings({}, file)


def test_every_block_has_a_known_language() -> None:
    known = {"shell", "python", "javascript", "json", "text", "yaml", "ini", "toml"}
    for path in PAGES:
        for block in blocks_of(path):
            assert block.language in known, f"{block.page}:{block.line}"


@pytest.mark.parametrize("path", sorted(DOCS.glob("guides/clients/*.md")), ids=lambda p: p.stem)
def test_client_page_has_a_request_and_its_answer(path: Path) -> None:
    if path.stem == "index":
        return
    text = path.read_text("utf-8")
    assert "## Request and answer" in text
    blocks = executed(path)
    assert any(block.is_answer for block in blocks)
    assert blocks[0].language in EXECUTED


def test_shape_of_values_with_other_names_differs() -> None:
    shown = {"id": "x", "n": 1}
    assert shape_of({"id": "y", "n": 2.5}, shown) == shape_of(shown, shown)
    assert shape_of({"id": "y"}, shown) != shape_of(shown, shown)
    assert shape_of({"id": "y", "n": "2"}, shown) != shape_of(shown, shown)


def test_environment_has_curl() -> None:
    assert any(Path(part, "curl").exists() for part in os.environ["PATH"].split(":"))
