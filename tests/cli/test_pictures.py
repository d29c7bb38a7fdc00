"""Which pictures commands read, and which files they write."""

import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from overpaint.cli.main import main
from overpaint.cli.outputs import Outputs, claim_new_files
from overpaint.cli.painting import DEFAULT_MODEL_NOTE
from overpaint.cli.sources import Source, split_prompt
from overpaint.errors import OutputError
from overpaint.imaging import codec
from overpaint.network import download
from overpaint.provenance import metadata
from overpaint.system import processors
from tests.cli.test_commands import Loader, loader, run

__all__ = ["loader", "run"]


@pytest.fixture
def photos(loader: Loader) -> Path:
    """A folder of three pictures in two formats, and a text."""
    folder = Path("photos")
    folder.mkdir()
    for name, color in {"a.png": "red", "b.jpg": "green", "c.png": "blue"}.items():
        Image.new("RGB", (20, 10), color).save(folder / name)
    (folder / "notes.txt").write_text("hello")
    return folder


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Any:
    def send(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return send


# Models


def test_edit_without_a_model_says_which_one_paints_and_how_to_get_sdxl(loader: Loader, run: Any):
    err = run("edit", "fox.png", "x").err
    assert f"note: {DEFAULT_MODEL_NOTE}\n" in err
    assert "--model sdxl" in DEFAULT_MODEL_NOTE
    assert "\nminiature, 64x48, seed " in err
    assert "--model sdxl" in run("create", "x").err
    assert "--model sdxl" in run("sweep", "fox.png", "x").err


def test_edit_with_a_model_prints_its_name_alone(loader: Loader, run: Any):
    err = run("edit", "fox.png", "x", "--model", "mine").err
    assert "\nmine, 64x48, seed " in err
    assert "miniature" not in err


def test_threads_option_reaches_torch(loader: Loader, run: Any, monkeypatch: pytest.MonkeyPatch):
    asked: list[int | None] = []
    monkeypatch.setattr("overpaint.cli.painting.set_threads", asked.append)
    assert processors.count_usable_cores() >= 1
    run("edit", "fox.png", "x", "--threads", 3)
    run("create", "x")
    assert asked == [3, None]


# Many pictures


def test_edit_of_many_pictures_loads_the_model_once(photos: Path, loader: Loader, run: Any):
    ran = run("edit", "photos/a.png", "photos/c.png", "x", "-o", "out/")
    assert ran.code == 0
    assert ran.out.splitlines() == ["out/a-overpaint.png", "out/c-overpaint.png"]
    assert [request.prompt for request in loader.requests] == ["x", "x"]
    assert len(loader.calls) == 1
    assert len({request.seed for request in loader.requests}) == 2


@pytest.mark.parametrize("word", ["photos", "photos/"])
def test_edit_of_a_folder_paints_its_pictures(photos: Path, loader: Loader, run: Any, word: str):
    ran = run("edit", word, "x", "--output", "new/folder/")
    assert [Path(line).name for line in ran.out.splitlines()] == [
        f"{name}-overpaint.png" for name in "abc"
    ]
    assert sorted(p.name for p in Path("new/folder").iterdir()) == [
        f"{name}-overpaint.png" for name in "abc"
    ]


def test_edit_of_a_folder_names_the_files_that_it_leaves(photos: Path, loader: Loader, run: Any):
    (photos / ".hidden.png").write_bytes((photos / "a.png").read_bytes())
    (photos / "d.jfif").write_bytes((photos / "b.jpg").read_bytes())
    err = run("edit", "photos", "x", "-o", "out/").err
    assert "1 files do not look like pictures: notes.txt." in err
    assert len(list(Path("out").iterdir())) == 4


def test_last_argument_that_is_a_file_is_no_prompt(photos: Path, loader: Loader, run: Any):
    assert split_prompt(["photos/a.png", "photos/notes.txt"])[1] is None
    assert split_prompt(["photos/a.png", "a fox"])[1] == "a fox"


def test_prompt_in_place_of_a_picture_is_no_traceback(loader: Loader, run: Any):
    assert "too long for a file name" in run("edit", "a long prompt " * 30).err


def test_stdin_gives_a_mask_to_many_pictures(photos: Path, loader: Loader, run: Any, stdin: Any):
    stdin((photos / "a.png").read_bytes())
    run("edit", "photos/a.png", "photos/c.png", "x", "--mask", "-", "-o", "out/")
    assert len(list(Path("out").iterdir())) == 2
    assert "given twice" in run("edit", "-", "-", "x").err


@pytest.mark.parametrize("text", ["ink:0,8", "ink:0.8:texts=1"])
def test_lora_option_that_cannot_be_read_is_refused(loader: Loader, run: Any, text: str):
    assert "--lora" in run("edit", "fox.png", "x", "--lora", text).err


def test_edit_expands_patterns_that_the_shell_left(photos: Path, loader: Loader, run: Any):
    assert len(run("edit", "photos/*.png", "x", "-o", "out/").out.splitlines()) == 2


def test_edit_of_pictures_with_one_name_keeps_both(photos: Path, loader: Loader, run: Any):
    Image.new("RGB", (20, 10)).save("a.png")
    ran = run("edit", "photos/a.png", "a.png", "x", "-o", "out/")
    assert ran.out.splitlines() == ["out/a-overpaint.png", "out/a-overpaint-2.png"]


def test_edit_of_many_pictures_goes_on_after_a_damaged_one(photos: Path, loader: Loader, run: Any):
    (photos / "b.jpg").write_bytes(b"hello")
    ran = run("edit", "photos", "x", "-o", "out/", "--quiet")
    assert ran.code == 3
    assert ran.out.splitlines() == ["out/a-overpaint.png", "out/c-overpaint.png"]
    assert "photos/b.jpg is not painted: photos/b.jpg is not a picture" in ran.err
    assert "1 of 3 pictures are not painted." in ran.err


def test_edit_of_many_pictures_goes_on_after_one_that_an_option_does_not_fit(
    photos: Path, loader: Loader, run: Any
):
    Image.new("RGB", (6, 6)).save(photos / "b.png")
    ran = run("edit", "photos", "x", "--mask-from", "box:10,0,20,9", "-o", "out/", "--quiet")
    assert ran.code == 2
    assert len(ran.out.splitlines()) == 3
    assert "photos/b.png is not painted: --mask-from: " in ran.err


def test_damaged_mask_of_many_pictures_is_named_once(photos: Path, loader: Loader, run: Any):
    (photos / "mask.txt").write_bytes(b"hello")
    ran = run("edit", "photos", "x", "--mask", "photos/mask.txt", "-o", "out/")
    assert (ran.code, ran.out, loader.calls) == (3, "", [])
    assert ran.err.count("is not a picture") == 1


def test_edit_of_many_pictures_with_a_wrong_option_stops_at_once(
    photos: Path, loader: Loader, run: Any
):
    ran = run("edit", "photos", "x", "--strength", 3)
    assert (ran.code, ran.out, loader.calls) == (2, "", [])


def test_edit_of_many_pictures_prints_an_object_for_each(photos: Path, loader: Loader, run: Any):
    lines = run("edit", "photos", "x", "-o", "out/", "--json").out.splitlines()
    assert [json.loads(line)["outputs"] for line in lines] == [
        [f"out/{name}-overpaint.png"] for name in "abc"
    ]


def test_edit_of_a_folder_without_pictures_is_rejected(loader: Loader, run: Any):
    Path("empty").mkdir()
    ran = run("edit", "empty", "x")
    assert (ran.code, ran.err) == (
        3,
        "overpaint: empty is a folder without pictures; give a picture file.\n",
    )


def test_last_argument_that_looks_like_a_picture_is_not_a_prompt(photos: Path):
    assert split_prompt(["a.png", "a wolf"]) == (["a.png"], "a wolf")
    assert split_prompt(["a.png"]) == (["a.png"], None)
    for last in ("b.PNG", "-", "https://example.org/b", "photos/"):
        assert split_prompt(["a.png", last]) == (["a.png", last], None)
    for prompt in ("photos", "a poster that says fox.png", "x"):
        assert split_prompt(["a.png", prompt]) == (["a.png"], prompt)


# stdin, stdout and URLs


def test_edit_reads_stdin_and_writes_stdout(
    loader: Loader, stdin: Any, capsysbinary: pytest.CaptureFixture[bytes]
):
    stdin(Path("fox.png").read_bytes())
    with pytest.raises(SystemExit) as ended:
        main(["edit", "-", "a wolf", "-o", "-", "--seed", "7"])
    assert not ended.value.code
    shown = capsysbinary.readouterr()
    assert loader.requests[0].image == codec.read_picture("fox.png")
    Path("made.png").write_bytes(shown.out)
    assert metadata.read_settings("made.png").fields["seed"] == 7
    assert b"64x48, seed 7" in shown.err
    assert sorted(path.name for path in Path().iterdir()) == ["fox.png", "made.png"]


def test_mask_is_read_from_stdin(loader: Loader, run: Any, stdin: Any):
    stdin(Path("fox.png").read_bytes())
    assert run("edit", "fox.png", "x", "--mask", "-").code == 0
    assert loader.requests[0].mask == codec.read_picture("fox.png")


@pytest.mark.parametrize(
    ("data", "why"), [(b"", "stdin is empty"), (b"hello", "stdin is not a picture")]
)
def test_stdin_without_a_picture_is_rejected(
    loader: Loader, run: Any, stdin: Any, data: bytes, why: str
):
    stdin(data)
    ran = run("edit", "-", "x")
    assert (ran.code, ran.out) == (3, "")
    assert why in ran.err


def test_stdin_and_stdout_that_are_terminals_are_rejected(
    loader: Loader, run: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    assert "Stdin is a terminal" in run("edit", "-", "x").err
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "stdout is a terminal" in run("edit", "fox.png", "x", "-o", "-").err
    assert loader.calls == []


def test_edit_of_a_url_downloads_it(loader: Loader, run: Any, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def answer(url: str) -> bytes:
        asked.append(url)
        return Path("fox.png").read_bytes()

    monkeypatch.setattr(download, "download", answer)
    url = "https://example.org/red%20fox.png?size=1"
    assert run("edit", url, "x").out == "red-fox-overpaint.png\n"
    assert asked == [url]
    assert loader.requests[0].image == codec.read_picture("fox.png")


@pytest.mark.parametrize(
    ("text", "stem"),
    [
        ("a/b.c.png", "b.c"),
        ("-", "stdin"),
        ("https://x.org/", "picture"),
        ("https://x.org/a/..%2F..%2Fetc", "etc"),
        ("https://x.org/%00%1b[31m.png", "31m"),
    ],
)
def test_stem_of_a_source_is_a_safe_file_name(text: str, stem: str):
    assert Source(text).stem == stem


# Files


def test_output_folders_are_made(loader: Loader, run: Any):
    assert run("edit", "fox.png", "x", "-o", "a/b/out.jpg").out == "a/b/out.jpg\n"
    assert run("create", "x", "-o", "c/").out == "c/overpaint.png\n"
    assert run("sweep", "fox.png", "x", "-o", "d/e.png").out == "d/e.png\n"
    assert run("hint", "canny", "fox.png", "-o", "f/g.png").out == "f/g.png\n"


def test_folder_as_output_never_overwrites_a_file(loader: Loader, run: Any):
    assert run("create", "x", "-o", ".").out == "overpaint.png\n"
    before = Path("overpaint.png").read_bytes()
    assert run("create", "x", "-o", ".", "--seed", 3).out == "overpaint-2.png\n"
    assert Path("overpaint.png").read_bytes() == before


def test_runs_at_once_never_claim_one_name(tmp_path: Path):
    names: list[Path] = []
    for pictures in (1, 1, 2, 2):
        with claim_new_files(tmp_path, "fox", pictures) as claimed:  # nothing is written yet
            names += claimed
    assert [path.name for path in names] == [
        *("fox.png", "fox-2.png", "fox-0.png", "fox-1.png", "fox-2-0.png", "fox-2-1.png")
    ]


def test_claimed_names_are_freed_if_writing_fails(tmp_path: Path):
    def write() -> None:
        with claim_new_files(tmp_path, "fox", 3) as claimed:
            claimed[0].write_text("written")
            raise OutputError("the disk is full")

    with pytest.raises(OutputError):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["fox-0.png"]


def test_name_that_another_run_claims_while_painting_is_not_overwritten(
    loader: Loader, run: Any, monkeypatch: pytest.MonkeyPatch
):
    before = Outputs.check

    def check(self: Outputs, stem: str, request: Any) -> None:
        before(self, stem, request)
        Path(f"{stem}.png").write_text("of another run")

    monkeypatch.setattr(Outputs, "check", check)
    assert run("edit", "fox.png", "x").out == "fox-overpaint-2.png\n"
    assert Path("fox-overpaint.png").read_text() == "of another run"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_write_protected_folder_is_rejected_before_loading(loader: Loader, run: Any):
    Path("locked").mkdir(mode=0o500)
    ran = run("edit", "fox.png", "x", "-o", "locked/")
    assert (ran.code, loader.calls) == (5, [])
