"""The Router deployment, for setups that want the decision outside the gateway (`router.placement: deployment`)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from ray.serve.handle import DeploymentHandle

from engine.config import EngineConfig
from engine.generation.adapters.inputs import TrainingInputs
from engine.routing.needs import Needs
from engine.serving.failures import call
from engine.serving.loopback import bind_replica_to_loopback
from engine.serving.router_host import RouterHost, Served
from engine.values import RouteRequest, Routing


class HandleRouterSource:
    """`RouterSource` over the handles of the deployments that know."""

    def __init__(self, retriever: DeploymentHandle, generator: DeploymentHandle) -> None:
        self._retriever = retriever
        self._generator = generator
        self._model: str | None = None  # does not change while it runs

    async def served(self) -> Served:
        """See RouterSource."""
        if self._model is None:
            self._model = (await call("generator", self._generator.model.remote())).digest
        index, adapters = await asyncio.gather(
            call("retriever", self._retriever.index_info.remote()),
            call("generator", self._generator.served_adapters.remote()),
        )
        return Served(self._model, index, tuple(adapters))

    async def training_inputs(self, digest: str) -> TrainingInputs | None:
        """See RouterSource."""
        return await call("generator", self._generator.training_inputs.remote(digest))


class RouterDeployment:
    """A thin shell around the same host that the gateway runs in its own process by default."""

    def __init__(self, config: EngineConfig, retriever: DeploymentHandle, generator: DeploymentHandle) -> None:
        bind_replica_to_loopback()
        self._host = RouterHost(config, HandleRouterSource(retriever, generator))

    async def needs(self, collection: str) -> Needs:
        """What has to be known of questions to a collection."""
        return await self._host.needs(collection)

    async def decide(self, requests: Sequence[RouteRequest], wants_signals: bool) -> Routing:
        """Choose the arms of questions."""
        return await self._host.decide(requests, wants_signals)

    async def check_health(self) -> None:
        """Called by Ray Serve, the first time before there are requests, which would wait for what this waits for."""
        await self._host.start()

    async def status(self) -> dict[str, Any]:
        """What `/readyz` shows."""
        return await self._host.status()
