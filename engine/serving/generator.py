"""The Generator deployment: each replica owns one engine and sends its deltas to the gateways."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from hashlib import sha256
from time import monotonic
from typing import Any

from ray.serve.handle import DeploymentHandle

from engine.api.backends import ModelInfo
from engine.config import EngineConfig, Profile
from engine.errors import ComponentUnavailable
from engine.generation.adapters.digest_folders import DigestFolders
from engine.generation.adapters.follower import AdapterFollower
from engine.generation.adapters.host import served_adapters
from engine.generation.adapters.inputs import TrainingInputs, read_inputs
from engine.generation.adapters.owner import FILES_FOLDER
from engine.generation.adapters.service import AdapterService
from engine.generation.adapters.status import AdapterStatus, ServedAdapter
from engine.generation.engine import Engine
from engine.models import cache_root, resolve_model
from engine.retrieval.store.address import chosen_store
from engine.serving.adapters import REFRESH_S, HandleSource, replica_name, short_replica_name
from engine.serving.deltas.sender import DeltaSender
from engine.serving.deltas.wire import ReplyTo
from engine.serving.loopback import bind_replica_to_loopback
from engine.serving.options import device
from engine.serving.ranks import RankProcesses
from engine.tuning.adapter_store import open_adapters
from engine.values import ContinuationScore, GenerationRequest, ScoreRequest

# To read every adapter that is to be served, on a busy machine.
_ADAPTERS_S = 300.0


class GeneratorDeployment:
    """A thin shell: admission, batching, deadlines and cancellation are the engine's.

    The only replica owns the adapters. Several follow the Adapters deployment, and take requests once they serve what
    it says.
    """

    def __init__(self, config: EngineConfig, profile: Profile, adapters: DeploymentHandle | None = None) -> None:
        bind_replica_to_loopback()
        settings = config.generator
        model = resolve_model(settings.model, kind="generator")
        self._ranks: RankProcesses | None = None
        if settings.tensor_parallel > 1:
            self._ranks = RankProcesses(settings, device(profile))
            self._engine = self._ranks.start(model)
        else:
            self._engine = Engine(model.path, settings, device=device(profile), model_digest=model.digest)
        self._model = ModelInfo(
            name=settings.name or model.name,
            digest=model.digest,
            max_model_len=self._engine.max_model_len,
            created=int((model.path / "config.json").stat().st_mtime),  # so replicas agree
        )
        self._deltas = DeltaSender()
        self._done: tuple[int, float] = 0, monotonic()
        self._adapters: AdapterService | None = None
        self._follower: AdapterFollower | None = None
        kept = open_adapters(config.data, chosen_store(config.store), settings.adapter_paths)
        if adapters is None:
            self._adapters = AdapterService(self._engine, kept, base_name=self._model.name)
            self._adapters.go_on_refreshing(REFRESH_S)
            return
        # Replicas of one machine share what they fetched; other servers there have folders of their own.
        place = sha256(str(config.data).encode()).hexdigest()[:12]
        self._follower = AdapterFollower(
            self._engine,
            HandleSource(adapters),
            DigestFolders(cache_root() / "adapters" / place),
            name=replica_name(),
            shared=DigestFolders(kept.folder / FILES_FOLDER),
        )
        self._follower.start(_ADAPTERS_S)

    async def answer(self, request: GenerationRequest, reply_to: ReplyTo) -> None:
        """Send an answer's deltas to the gateway; returns when it is complete.

        The caller's cancellation, or the end of the gateway, cancels the request in the engine.
        """
        self._check(request.adapter)
        await self._deltas.send(self._engine.submit(request), reply_to)

    async def score(self, request: ScoreRequest) -> tuple[tuple[ContinuationScore, ...], ...]:
        """How likely continuations are. The caller's cancellation stops the work in the engine."""
        self._check(request.adapter)
        return await self._engine.score(request)

    async def model(self) -> ModelInfo:
        """Name and limits of the model."""
        return self._model

    async def served_adapters(self) -> list[ServedAdapter]:
        """What is loaded."""
        return served_adapters(self._engine)

    async def training_inputs(self, digest: str) -> TrainingInputs | None:
        """What the adapter of that digest was trained on; None where its files do not say.

        Raises: InvalidAdapter where they are not what they were; ComponentUnavailable where it is not loaded here.
        """
        for info in self._engine.adapters():
            if info.digest == digest:
                return await asyncio.to_thread(read_inputs, info.path, info.manifest, info.name)
        raise ComponentUnavailable("generator", f"adapter digest {digest[:12]}... is not loaded by this replica")

    async def adapters(self) -> list[AdapterStatus]:
        """What is loaded, and what could be. This and the next two: of the only replica."""
        assert self._adapters is not None
        return await asyncio.to_thread(self._adapters.statuses)

    async def load_adapter(self, name: str, path: str | None, version: str | None = None) -> AdapterStatus:
        """Serve an adapter from now on."""
        assert self._adapters is not None
        return await asyncio.to_thread(self._adapters.load, name, path, version)

    async def unload_adapter(self, name: str, delete_files: bool) -> None:
        """Serve an adapter no more."""
        assert self._adapters is not None
        await asyncio.to_thread(self._adapters.unload, name, delete_files=delete_files)

    async def status(self) -> dict[str, Any]:
        """What `/readyz` shows."""
        stats = await asyncio.to_thread(self._engine.stats)
        own = {} if self._follower is None else {"replica": short_replica_name()}
        return {"ready": True, "model": self._model.name, **own, **asdict(stats)}

    def record_routing_stats(self) -> dict[str, Any]:
        """What routers of requests hear every second, where there are several replicas."""
        return self._engine.report().as_json()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What the autoscaling policy goes by; `tokens_per_s` since the last call."""
        stats, now_s = self._engine.stats(), monotonic()
        done = stats.prompt_tokens - stats.cached_tokens + stats.output_tokens
        before, before_s = self._done
        self._done = done, now_s
        return {
            "waiting_tokens": float(stats.waiting_tokens),
            "kv_share": stats.kv_tokens / stats.max_kv_tokens,
            "tokens_per_s": (done - before) / max(now_s - before_s, 1e-3),
        }

    def check_health(self) -> None:
        """Raise when the engine made no progress although there is work, or lacks adapters that it is to serve; Ray
        Serve then replaces this replica.
        """
        self._engine.check_health()
        if self._ranks is not None:
            self._ranks.check()
        if self._follower is not None:
            self._follower.check_health()

    def _check(self, adapter: str | None) -> None:
        if self._follower is not None:
            self._follower.check(adapter)

    def __del__(self) -> None:
        follower: AdapterFollower | None = getattr(self, "_follower", None)
        if follower is not None:
            follower.close()
        adapters: AdapterService | None = getattr(self, "_adapters", None)
        if adapters is not None:
            adapters.close()
        if hasattr(self, "_engine"):
            self._engine.close()
        ranks: RankProcesses | None = getattr(self, "_ranks", None)
        if ranks is not None:
            ranks.stop()
