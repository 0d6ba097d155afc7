"""The Router deployment, for setups that want the decision outside the gateway (`router.placement: deployment`)."""

from __future__ import annotations

from engine.config import EngineConfig
from engine.routing.rule import ScoreRule
from engine.serving.loopback import bind_replica_to_loopback
from engine.values import Decision, Evidence, Route


class RouterDeployment:
    """A thin shell around the same rule that the gateway runs in its own process by default."""

    def __init__(self, config: EngineConfig) -> None:
        bind_replica_to_loopback()
        self._rule = ScoreRule(config.router.min_z)

    async def decide(self, pinned: Route | None, evidence: Evidence | None, missing: str | None) -> Decision:
        """Choose the arm of one question."""
        return self._rule.decide(pinned, evidence, missing)
