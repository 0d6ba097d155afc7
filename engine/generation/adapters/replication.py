"""What travels between the owner of the adapters' desired set and the replicas that follow it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from engine.errors import InvalidAdapter
from engine.generation.adapters.digest_folders import PieceSource


@dataclass(frozen=True, slots=True)
class Desired:
    """What every replica is to serve: digests by name. Versions begin anywhere, and each change has another one."""

    version: int
    digests: dict[str, str]


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a desired set on one replica. `version` is that set's, 0 before the first.

    `served` are digests by name. `refused` do not fit the generator, so they fit no replica; `failed` says by name what
    this replica could not do and tries again.
    """

    follower: str
    version: int = 0
    served: dict[str, str] = field(default_factory=dict)
    refused: dict[str, InvalidAdapter] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class AdapterSource(PieceSource, Protocol):
    """The owner, as a replica sees it. Every method raises ComponentUnavailable where it does not answer."""

    def follow(self, report: Report) -> Desired:
        """Take note of a report; the desired set once it is another one than the report's, or after some seconds."""
