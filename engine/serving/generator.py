"""The Generator deployment: owns one engine and streams its deltas to the gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from engine.api.backends import ModelInfo
from engine.config import EngineConfig, Profile
from engine.generation.adapters.registry import AdapterRegistry
from engine.generation.adapters.service import AdapterService
from engine.generation.adapters.status import AdapterStatus, ServedAdapter
from engine.generation.engine import Engine
from engine.models import resolve_model
from engine.serving.coalesce import coalesce
from engine.serving.loopback import bind_replica_to_loopback
from engine.serving.options import device
from engine.values import ContinuationScore, GenerationRequest, ScoreRequest, TokenDelta


class GeneratorDeployment:
    """A thin shell: admission, batching, deadlines and cancellation are the engine's."""

    def __init__(self, config: EngineConfig, profile: Profile) -> None:
        bind_replica_to_loopback()
        settings = config.generator
        model = resolve_model(settings.model, kind="generator")
        self._engine = Engine(model.path, settings, device=device(profile), model_digest=model.digest)
        self._model = ModelInfo(
            name=settings.name or model.name,
            digest=model.digest,
            max_model_len=self._engine.max_model_len,
            created=int(time.time()),
        )
        registry = AdapterRegistry(config.data / "adapters", settings.adapter_paths)
        self._adapters = AdapterService(self._engine, registry, base_name=self._model.name)

    async def stream(self, request: GenerationRequest) -> AsyncIterator[list[TokenDelta]]:
        """Bundles of deltas. The caller's cancellation, or its death, cancels the request in the engine."""
        async for bundle in coalesce(self._engine.submit(request)):
            yield bundle

    async def score(self, request: ScoreRequest) -> tuple[tuple[ContinuationScore, ...], ...]:
        """How likely continuations are. The caller's cancellation stops the work in the engine."""
        return await self._engine.score(request)

    async def model(self) -> ModelInfo:
        """Name and limits of the model."""
        return self._model

    async def served_adapters(self) -> list[ServedAdapter]:
        """What is loaded."""
        return self._adapters.served()

    async def adapters(self) -> list[AdapterStatus]:
        """What is loaded, and what could be."""
        return await asyncio.to_thread(self._adapters.statuses)

    async def load_adapter(self, name: str, path: str | None, version: str | None = None) -> AdapterStatus:
        """Serve an adapter from now on."""
        return await asyncio.to_thread(self._adapters.load, name, path, version)

    async def unload_adapter(self, name: str, delete_files: bool) -> None:
        """Serve an adapter no more."""
        await asyncio.to_thread(self._adapters.unload, name, delete_files=delete_files)

    async def status(self) -> dict[str, Any]:
        """What `/readyz` shows."""
        stats = await asyncio.to_thread(self._engine.stats)
        return {"ready": True, "model": self._model.name, **asdict(stats)}

    def check_health(self) -> None:
        """Raise when the engine made no progress although there is work; Ray Serve then replaces this replica."""
        self._engine.check_health()

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.close()
