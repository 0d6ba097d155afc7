"""What a replica says of itself to those who choose between replicas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """`serial` grows from one report of a replica to its next. `waiting_tokens` are of prompts that are not computed;
    `running` answers are in the batch; `kv_tokens` of `max_kv_tokens` token slots are taken by them. `tokens_per_s`
    prompt tokens are computed where several wait. `adapters` are the names of those in a slot.
    """

    serial: int
    waiting_tokens: int
    running: int
    kv_tokens: int
    max_kv_tokens: int
    tokens_per_s: float = 0.0
    adapters: frozenset[str] = frozenset()

    def as_json(self) -> dict[str, Any]:
        """For `parse`."""
        return {
            "serial": self.serial,
            "waiting_tokens": self.waiting_tokens,
            "running": self.running,
            "kv_tokens": self.kv_tokens,
            "max_kv_tokens": self.max_kv_tokens,
            "tokens_per_s": self.tokens_per_s,
            "adapters": sorted(self.adapters),
        }

    @staticmethod
    def parse(raw: Mapping[str, Any]) -> ReplicaReport | None:
        """None where a replica has not said anything yet, or is of another version."""
        try:
            return ReplicaReport(**{**raw, "adapters": frozenset(raw["adapters"])})
        except (KeyError, TypeError):
            return None
