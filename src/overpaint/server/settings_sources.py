"""Reading the server's settings from command-line flags, environment variables and a TOML file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from overpaint.errors import RequestError
from overpaint.server.settings import ServerSettings


def load_settings(flags: Mapping[str, Any], file: Path | None = None) -> ServerSettings:
    """Read the settings from their sources.

    A flag has priority over an environment variable, that over the file, and that over the default.
    The variable of a setting is `OVERPAINT_` and its name in capitals; two underscores separate the
    name of a group from the name in it, as in `OVERPAINT_LIMITS__BODY_BYTES`. The file has a table
    for each group.

    Args:
        flags: the settings that the command line gives, by name.
        file: a TOML file.

    Raises:
        RequestError: a value is not valid, or the file is missing, is not TOML or has an unknown
            name.
    """
    from pydantic_settings import (
        BaseSettings,
        EnvSettingsSource,
        InitSettingsSource,
        PydanticBaseSettingsSource,
        SettingsConfigDict,
        SettingsError,
        TomlConfigSettingsSource,
    )

    if file is not None and not file.is_file():
        raise RequestError("config", f"There is no file {file}.")

    class Sources(ServerSettings, BaseSettings):
        model_config = SettingsConfigDict(
            env_prefix="OVERPAINT_",
            env_nested_delimiter="__",
            toml_file=file,
            enable_decoding=False,
        )

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: Any, **__: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (
                InitSettingsSource(settings_cls, dict(flags)),
                EnvSettingsSource(settings_cls),
                TomlConfigSettingsSource(settings_cls),
            )

    try:
        found = Sources()
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise RequestError(name, f"{first['msg']} (value: {first['input']!r}).") from None
    except (SettingsError, ValueError, OSError) as error:
        raise RequestError("config", f"The settings cannot be read: {error}.") from None
    return ServerSettings.model_construct(
        **{name: getattr(found, name) for name in ServerSettings.model_fields}
    )
