"""What serves adapters under names: one engine, or all replicas of the generator as one. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from engine.generation.adapters.manifest import AdapterManifest
from engine.generation.adapters.status import ServedAdapter


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """A checked adapter. `digest` is that of its files' contents, `targets` are of TARGETS.

    `manifest` has every default where the folder holds none.
    """

    name: str
    digest: str
    path: Path
    rank: int
    targets: tuple[str, ...]
    num_bytes: int
    base_model: str
    manifest: AdapterManifest = field(default_factory=AdapterManifest)


class AdapterHost(Protocol):
    """Every method may be called from any thread."""

    def load_adapter(self, name: str, path: Path, digest: str | None = None) -> AdapterInfo:
        """Check the adapter in folder `path` and serve it as `name`; requests in progress keep what that name was.

        Waits for the files to be read. With `digest`, the files must have it. Raises: InvalidAdapter,
        ComponentUnavailable; nothing changes then.
        """

    def unload_adapter(self, name: str) -> AdapterInfo:
        """Refuse new requests for an adapter; those in progress are completed. Raises: UnknownAdapter."""

    def adapters(self) -> list[AdapterInfo]:
        """The adapters that requests may name, by name."""


def served_adapters(host: AdapterHost) -> list[ServedAdapter]:
    """What requests may name, from memory; by name."""
    return [ServedAdapter(info.name, info.digest, info.manifest.task) for info in host.adapters()]
