"""Settings of the server, from flags, environment variables and a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from overpaint.cli.messages import ARGUMENT_OF_FIELD
from overpaint.cli.serve import options
from overpaint.errors import RequestError
from overpaint.server.settings import ServerSettings
from overpaint.server.settings_sources import load_settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "overpaint.toml"
    path.write_text('port = 1\nkeep_days = 2\nmodels = ["a"]\n[limits]\nbody_bytes = 3\n')
    return path


def test_settings_without_sources_are_the_defaults() -> None:
    assert load_settings({}) == ServerSettings()


def test_settings_flag_overrides_environment_and_environment_overrides_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OVERPAINT_KEEP_DAYS", "4")
    monkeypatch.setenv("OVERPAINT_LIMITS__UPLOAD_BYTES", "5")
    monkeypatch.setenv("OVERPAINT_PORT", "6")
    settings = load_settings({"port": 7, "limits": {"queued_jobs": 8}}, file)
    limits = settings.limits
    assert (settings.port, settings.keep_days, settings.models) == (7, 4.0, ("a",))
    assert (limits.body_bytes, limits.upload_bytes, limits.queued_jobs) == (3, 5, 8)


def test_parts_of_models_come_from_the_flag_and_the_file(tmp_path: Path) -> None:
    path = tmp_path / "overpaint.toml"
    text = 'models = ["a", "b"]\nvae = "soft"\n[model_parts.b]\nvae = "own"\nunet = "fast"\n'
    path.write_text(text)
    config = load_settings({}, path).engine_config()
    assert config.list_parts("a") == {"vae": "soft"}
    assert config.list_parts("b") == {"vae": "own", "unet": "fast"}
    assert load_settings({"vae": "other"}, path).engine_config().list_parts("a")["vae"] == "other"
    for wrong in (text.replace("parts.b", "parts.c"), text.replace("unet", "vision")):
        path.write_text(wrong)
        with pytest.raises(RequestError, match=r"^model_parts"):
            load_settings({}, path)


def test_settings_environment_lists_are_split_at_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERPAINT_MODELS", "miniature sdxl")
    monkeypatch.setenv("OVERPAINT_KEY", " first second ")
    settings = load_settings({})
    assert settings.models == ("miniature", "sdxl")
    assert settings.api_keys == ("first", "second")
    assert "first" not in repr(settings)
    assert load_settings({"api_keys": ["three"]}).api_keys == ("three",)


def test_settings_wrong_value_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERPAINT_PORT", "none")
    with pytest.raises(RequestError, match=r"port: .*integer.*'none'"):
        load_settings({})


@pytest.mark.parametrize("text", ["limits = 3", "prot = 1", "[http]\nkeep = 1", "port = "])
def test_settings_file_that_is_wrong_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "overpaint.toml"
    path.write_text(text)
    with pytest.raises(RequestError):
        load_settings({}, path)
    with pytest.raises(RequestError, match="no file"):
        load_settings({}, tmp_path / "missing.toml")


def test_serve_options_are_named_alike_in_errors() -> None:
    flags = {option.path[-1]: option.flag.name for option in options()}
    assert all(flags[name] == flag for name, flag in ARGUMENT_OF_FIELD.items() if name in flags)
