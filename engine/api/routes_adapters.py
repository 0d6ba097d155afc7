"""`/v1/adapters`: what is loaded, and what could be."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from engine.api.backends import Backends
from engine.api.schemas_adapters import AdapterCard, AdapterGone, AdapterList, LoadAdapter, VersionInfo
from engine.api.strict_json import StrictRoute
from engine.generation.adapters.manifest import AdapterManifest
from engine.generation.adapters.status import AdapterStatus

DeleteFiles = Annotated[bool, Query(description="Delete the adapter's folder, with every version, as well.")]


def adapters_router(backends: Backends) -> APIRouter:
    """The routes that manage adapters."""
    router = APIRouter(route_class=StrictRoute, tags=["adapters"])

    @router.get("/v1/adapters")
    async def adapters() -> AdapterList:
        """Adapters that are loaded, and those in the data folder that are not."""
        parent = (await backends.model()).name
        return AdapterList(data=[_card(status, parent) for status in await backends.adapters()])

    @router.post("/v1/adapters")
    async def load(request: LoadAdapter) -> AdapterCard:
        """Load an adapter, another version of it, or its changed files; requests in progress keep what they have."""
        parent = (await backends.model()).name
        return _card(await backends.load_adapter(request.name, request.path, request.version), parent)

    @router.delete("/v1/adapters/{name}")
    async def unload(name: str, files: DeleteFiles = False) -> AdapterGone:
        """Refuse new requests for an adapter; those in progress are completed."""
        await backends.unload_adapter(name, files)
        return AdapterGone(name=name, files_deleted=files)

    return router


def _card(status: AdapterStatus, parent: str) -> AdapterCard:
    manifest = status.manifest or AdapterManifest()
    return AdapterCard(
        name=status.name,
        parent=parent,
        loaded=status.is_loaded,
        replicas=status.replicas,
        digest=status.digest,
        rank=status.rank,
        targets=list(status.targets),
        path=status.path,
        error=status.error,
        task=manifest.task,
        labels=[label.name for label in manifest.labels],
        verdict=manifest.verdict,
        metrics=manifest.metrics,
        instruction=manifest.instruction,
        temperature=manifest.temperature if manifest.labels else None,
        num_examples=manifest.num_examples,
        data_digest=manifest.data_digest,
        num_inputs=manifest.inputs.rows if manifest.inputs else None,
        inputs_encoder=manifest.inputs.encoder if manifest.inputs else None,
        version=status.version,
        versions=[
            VersionInfo(
                version=each.version,
                digest=each.digest,
                added_at=each.added_at,
                current=each.version == status.versions.current,
            )
            for each in status.versions.versions
        ],
    )
