"""Adapters as users see them."""

from __future__ import annotations

from dataclasses import dataclass

from engine.generation.adapters.manifest import AdapterManifest


@dataclass(frozen=True, slots=True)
class AdapterStatus:
    """One adapter. `digest`, `rank` and `targets` are known of loaded ones.

    `manifest` is that of the loaded files, else of those in its folder; None where they have none that can be read.
    `error` says why one that was to be served is not.
    """

    name: str
    path: str
    digest: str | None
    rank: int | None
    targets: tuple[str, ...]
    is_loaded: bool
    error: str | None
    manifest: AdapterManifest | None = None
