"""What is read of a serve_config.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from engine.config.base import Settings
from engine.config.gateway import HttpOptions
from engine.config.tree import describe
from engine.errors import ConfigError

APP_IMPORT_PATH = "engine.serving.application:build_app"


class ServeFile(Settings):
    """What `switchyard serve` reads of a serve_config.yaml: the same file that `serve deploy` takes."""

    http: HttpOptions = HttpOptions()
    args: dict[str, Any] = Field(default_factory=dict)


def read_serve_file(path: Path) -> ServeFile:
    """Read the one Switchyard application of a Ray Serve configuration file.

    Raises: ConfigError when the file is missing, is not YAML, or asks for what only `serve deploy` honours.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). Name a file with --config.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    applications = raw.get("applications") if isinstance(raw, dict) else None
    if not isinstance(applications, list):
        raise ConfigError(f"{path}: has no list `applications`. See serve_config.yaml in the repository.")
    ours = [app for app in applications if isinstance(app, dict) and app.get("import_path") == APP_IMPORT_PATH]
    if len(ours) != 1:
        raise ConfigError(f"{path}: needs exactly one application with import_path {APP_IMPORT_PATH}, has {len(ours)}.")
    if ours[0].get("deployments"):
        raise ConfigError(
            f"{path}: `deployments:` overrides are honoured by `serve deploy` only. "
            "Set the same under args (for example gateway.num_replicas)."
        )
    try:
        return ServeFile(http=HttpOptions(**(raw.get("http_options") or {})), args=ours[0].get("args") or {})
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "; ".join(f"http_options.{describe(p)}" for p in error.errors())) from None
