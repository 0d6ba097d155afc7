"""Adapters as users see them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from engine.generation.adapters.manifest import AdapterManifest
from engine.generation.adapters.versions import AdapterVersions


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """What every request that may name an adapter has to know of it. One with the task classify has labels."""

    name: str
    digest: str
    task: Literal["classify", "qa", "chat"] | None


@dataclass(frozen=True, slots=True)
class AdapterStatus:
    """Everything about one adapter, some of it from files. `digest`, `rank` and `targets` are known of loaded ones.

    `manifest` is that of the loaded files, else of those in its folder; None where they have none that can be read.
    `version` is the one that is loaded or would be, None outside of `versions`. `error` says why one that was to be
    served is not. `replicas` of the generator have it loaded.
    """

    name: str
    path: str
    digest: str | None
    rank: int | None
    targets: tuple[str, ...]
    is_loaded: bool
    error: str | None
    manifest: AdapterManifest | None = None
    version: str | None = None
    versions: AdapterVersions = field(default_factory=AdapterVersions)
    replicas: int = 0
