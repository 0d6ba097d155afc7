"""The Adapters deployment: what the generator's replicas are to serve, where there are several."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.serve._private.constants import SERVE_NAMESPACE
from ray.serve.handle import DeploymentHandle

from engine.config import EngineConfig
from engine.generation.adapters.fleet import POLL_S
from engine.generation.adapters.owner import AdapterOwner
from engine.generation.adapters.replication import Desired, Report
from engine.generation.adapters.status import AdapterStatus
from engine.models import resolve_model
from engine.retrieval.store.address import chosen_store
from engine.serving.failures import translate
from engine.serving.loopback import bind_replica_to_loopback
from engine.tuning.adapter_store import open_adapters

_ANSWER_S = 30.0
# While a process takes the place of another, either may be told to load or unload.
REFRESH_S = 2.0


class AdaptersDeployment:
    """A thin shell around the owner. It has one replica, and no request waits for it."""

    def __init__(self, config: EngineConfig) -> None:
        bind_replica_to_loopback()
        settings = config.generator
        model = resolve_model(settings.model, kind="generator")
        self._owner = AdapterOwner(
            open_adapters(config.data, chosen_store(config.store), settings.adapter_paths),
            base_name=settings.name or model.name,
            model_digest=model.digest,
            max_rank=settings.max_adapter_rank,
            is_alive=_is_alive,
        )
        self._owner.go_on_refreshing(REFRESH_S)
        # Replicas wait here for news, a thread each: one that was replaced may still hold its own.
        self._waiting = ThreadPoolExecutor(2 * settings.most_replicas + 2, "followers")

    def __del__(self) -> None:
        owner: AdapterOwner | None = getattr(self, "_owner", None)
        if owner is not None:
            owner.close()

    async def adapters(self) -> list[AdapterStatus]:
        """What is loaded, and what could be."""
        return await asyncio.to_thread(self._owner.statuses)

    async def load_adapter(self, name: str, path: str | None, version: str | None = None) -> AdapterStatus:
        """Serve an adapter from now on, on every replica."""
        return await asyncio.to_thread(self._owner.load, name, path, version)

    async def unload_adapter(self, name: str, delete_files: bool) -> None:
        """Serve an adapter no more."""
        await asyncio.to_thread(self._owner.unload, name, delete_files=delete_files)

    async def follow(self, report: Report) -> Desired:
        """What a replica is to serve."""
        return await asyncio.get_running_loop().run_in_executor(self._waiting, self._owner.follow, report)

    async def sizes(self, digest: str) -> dict[str, int]:
        """The files of an adapter."""
        return await asyncio.to_thread(self._owner.sizes, digest)

    async def piece(self, digest: str, file: str, offset: int) -> bytes:
        """A part of one."""
        return await asyncio.to_thread(self._owner.piece, digest, file, offset)


class HandleSource:
    """`AdapterSource` over a handle to the Adapters deployment. Blocks: not for an event loop."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    def follow(self, report: Report) -> Desired:
        desired: Desired = self._call("follow", report, timeout_s=POLL_S + _ANSWER_S)
        return desired

    def sizes(self, digest: str) -> dict[str, int]:
        sizes: dict[str, int] = self._call("sizes", digest)
        return sizes

    def piece(self, digest: str, file: str, offset: int) -> bytes:
        piece: bytes = self._call("piece", digest, file, offset)
        return piece

    def _call(self, method: str, *arguments: Any, timeout_s: float = _ANSWER_S) -> Any:
        response = getattr(self._handle, method).remote(*arguments)
        try:
            return response.result(timeout_s=timeout_s)
        except Exception as error:
            response.cancel()
            raise translate("owner of the adapters", error) from None


def replica_name() -> str:
    """The name of the replica that this process is, which no other one ever has."""
    name: str = ray.get_runtime_context().get_actor_name()
    return name


def short_replica_name() -> str:
    """Its last part, which differs between the replicas of a deployment."""
    return replica_name().rpartition("#")[2]


def _is_alive(name: str) -> bool:
    """Whether the replica of that name runs; Ray forgets the names of dead actors."""
    try:
        ray.get_actor(name, namespace=SERVE_NAMESPACE)
    except ValueError:
        return False
    return True
