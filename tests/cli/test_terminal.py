"""Text from files does not control the terminal."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from overpaint.cli.terminal import Terminal, echo, print_facts
from overpaint.system.plain_text import escape_control_characters

TITLE, COLOR, CLIPBOARD = "\x1b]0;owned\x07", "\x1b[31m", "\x9d52;c;b3duZWQ=\x9c"
HOSTILE = f"a{TITLE}{COLOR}{CLIPBOARD}\r\u202eb"


def has_control(text: str) -> bool:
    return any(not sign.isprintable() and sign not in "\n\t" for sign in text)


def test_control_characters_are_escaped_and_others_are_kept() -> None:
    assert escape_control_characters("\x1b[31m\r\x9b") == "\\x1b[31m\\r\\x9b"
    assert escape_control_characters("a\ud800\udfffb") == "a\\ud800\\udfffb"
    assert escape_control_characters("caf\u00e9 \u5bb6\n\t{x}") == "caf\u00e9 \u5bb6\n\t{x}"


def test_terminal_prints_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    echo(HOSTILE)
    print_facts({"words": (HOSTILE,), "title": HOSTILE})
    Terminal().note(HOSTILE)
    shown = capsys.readouterr()
    assert "owned" in shown.out
    assert not has_control(shown.out + shown.err)


def test_terminal_prints_words_in_colons_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().note("'[cat:dog:0.5]' [bold]x[/bold]")
    assert capsys.readouterr().err == "note: '[cat:dog:0.5]' [bold]x[/bold]\n"


def test_commands_print_no_control_characters_of_files(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", f"{HOSTILE}\nSteps: 3, Sampler: Euler, Seed: 1, Model: {HOSTILE}")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png", pnginfo=text)
    key = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {
        f"{key}.lora_down.weight": torch.ones(1, 8),
        f"{key}.lora_up.weight": torch.ones(8, 1),
    }
    metadata = {"modelspec.trigger_phrase": HOSTILE, HOSTILE: json.dumps(HOSTILE)}
    metadata["modelspec.license"] = HOSTILE
    save_file(tensors, tmp_path / "ink.safetensors", metadata)
    commands = (
        ["info", str(tmp_path / "a.png")],
        ["models", "add", str(tmp_path / "ink.safetensors")],
        ["models", "show", "ink"],
        ["models", "list"],
        ["info", f"{HOSTILE}.png"],
    )
    program = f"""
import os, sys
os.environ["OVERPAINT_HOME"] = {str(tmp_path)!r}
from overpaint.cli.main import main
for arguments in {commands!r}:
    try:
        main(arguments)
    except SystemExit:
        pass
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    shown = (done.stdout + done.stderr).decode()
    assert shown.count("owned") >= 5
    assert not has_control(shown)
