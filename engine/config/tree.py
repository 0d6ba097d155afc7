"""The whole tree of settings, and how it is read from what a user wrote."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from engine.config.base import Settings
from engine.config.gateway import GatewaySettings
from engine.config.generator import GeneratorSettings
from engine.config.retriever import RetrieverSettings
from engine.config.router import RouterSettings
from engine.errors import ConfigError

Profile = Literal["auto", "cpu", "gpu"]


class EngineConfig(Settings):
    """Everything that can be set, as `args:` of serve_config.yaml."""

    profile: Profile = Field("auto", description="auto: GPU when the Ray cluster has one; cpu; gpu.")
    data: Path = Field(Path(".switchyard"), description="Folder of everything that must survive a restart.")
    store: str | None = Field(
        None,
        description="URL of a PostgreSQL database for the knowledge base, without a password (PGPASSWORD, ~/.pgpass or "
        "all of the URL in SWITCHYARD_STORE); none: SQLite in `data`.",
    )
    rolling_update: Literal["auto", "start_first", "stop_first"] = Field(
        "auto",
        description="How `serve deploy` replaces gateways, routers, generators and retrievers that follow. "
        "start_first: a new one answers before an old one goes, which takes room for one more; stop_first: requests "
        "wait meanwhile; auto: start_first where the cluster has that room.",
    )
    gateway: GatewaySettings = GatewaySettings()
    router: RouterSettings = RouterSettings()
    retriever: RetrieverSettings = RetrieverSettings()
    generator: GeneratorSettings = GeneratorSettings()

    @field_validator("store", mode="before")
    @classmethod
    def _store_holds_no_secret(cls, url: Any) -> Any:
        if isinstance(url, str) and (
            _has_password(url) or not url.startswith(("postgresql://", "postgresql+psycopg://"))
        ):
            # The value is not shown: it may be a password.
            raise ValueError(
                "it must be postgresql+psycopg://USER@HOST:5432/DATABASE, without a password; set PGPASSWORD or "
                "~/.pgpass, or put all of the URL into SWITCHYARD_STORE"
            )
        return url

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping):
            _check_keys(cls, raw, prefix="")
        return raw


def _has_password(url: str) -> bool:
    parts = urlsplit(url)
    return ("@" in parts.netloc and ":" in parts.netloc.rpartition("@")[0]) or "password" in parts.query


def _check_keys(group: type[BaseModel], raw: Mapping[str, Any], prefix: str) -> None:
    """Raise for the first unknown key below `raw`, with the nearest known one as a suggestion."""
    for key, value in raw.items():
        if key not in group.model_fields:
            near = difflib.get_close_matches(str(key), group.model_fields, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"allowed here: {', '.join(sorted(group.model_fields))}."
            raise ValueError(f"{prefix}{key} is not a setting; {hint}")
        inner = group_in(group.model_fields[key].annotation)
        if isinstance(value, Mapping) and inner is not None:
            _check_keys(inner, value, prefix=f"{prefix}{key}.")


def group_in(annotation: Any) -> type[BaseModel] | None:
    """The group of settings that a field holds, optional or not; None where it holds a value."""
    for each in (annotation, *get_args(annotation)):
        if isinstance(each, type) and issubclass(each, BaseModel):
            return each
    return None


def parse_config(raw: Mapping[str, Any], origin: str) -> EngineConfig:
    """Validate `raw` as an EngineConfig.

    Raises: ConfigError, one line per problem; `origin` names where the values came from.
    """
    try:
        return EngineConfig.model_validate(raw)
    except ValidationError as error:
        problems = "; ".join(describe(problem) for problem in error.errors())
        raise ConfigError(f"{origin}: {problems}") from None


def describe(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error" or not where:
        return f"{where}: {message}" if where else message
    return f"{where}={problem['input']!r}: {message}"
