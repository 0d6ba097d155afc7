"""Ray Serve options of each deployment, from the settings."""

from __future__ import annotations

from typing import Any

from engine.config import EngineConfig, Profile

# A replica whose check fails three times in a row is replaced: at most 45 s after it stopped making progress.
HEALTH = {"health_check_period_s": 5, "health_check_timeout_s": 10}


def resolve_profile(profile: Profile, num_gpus: float) -> Profile:
    """`cpu` or `gpu`; `auto` takes the GPU when the cluster has one."""
    if profile == "auto":
        return "gpu" if num_gpus > 0 else "cpu"
    return profile


def device(profile: Profile) -> str:
    """The torch device of a replica that Ray placed."""
    return "cuda" if profile == "gpu" else "cpu"


def gateway_options(config: EngineConfig) -> dict[str, Any]:
    gateway = config.gateway
    return {
        "num_replicas": gateway.num_replicas,
        "max_ongoing_requests": gateway.max_ongoing_requests,
        # Requests beyond those in flight are refused by the proxy with 503, rather than kept waiting unseen.
        "max_queued_requests": gateway.max_ongoing_requests,
        "ray_actor_options": {"num_cpus": gateway.num_cpus},
        "graceful_shutdown_timeout_s": 10,
        **HEALTH,
    }


def router_options(config: EngineConfig) -> dict[str, Any]:
    return {
        "max_ongoing_requests": config.gateway.max_ongoing_requests,
        "max_queued_requests": config.gateway.max_ongoing_requests,
        "ray_actor_options": {"num_cpus": config.router.num_cpus},
        "graceful_shutdown_timeout_s": 2,
        **HEALTH,
    }


def retriever_options(config: EngineConfig, profile: Profile) -> dict[str, Any]:
    retriever = config.retriever
    return {
        # More than one follow the log of a deployment Writer, which owns the store.
        "num_replicas": retriever.num_replicas,
        "max_ongoing_requests": retriever.max_queued_queries,
        "max_queued_requests": retriever.max_queued_queries,
        "ray_actor_options": _resources(retriever.num_cpus, retriever.num_gpus, profile),
        "graceful_shutdown_timeout_s": 5,
        **HEALTH,
    }


def generator_options(config: EngineConfig, profile: Profile) -> dict[str, Any]:
    generator = config.generator
    # A little above what the engine admits, so that the engine's own bounded queue is the one that refuses.
    ongoing = generator.max_num_seqs + generator.max_queued + 8
    return {
        "num_replicas": generator.num_replicas,
        "max_ongoing_requests": ongoing,
        "max_queued_requests": ongoing,
        "ray_actor_options": _resources(generator.num_cpus, generator.num_gpus, profile),
        "graceful_shutdown_timeout_s": 10,
        **HEALTH,
    }


def adapters_options(config: EngineConfig) -> dict[str, Any]:
    # Replicas that wait for news, and copy files; people who change something.
    ongoing = 4 * config.generator.num_replicas + 32
    return {
        "num_replicas": 1,  # the folder of adapters has one owner
        "max_ongoing_requests": ongoing,
        "max_queued_requests": ongoing,
        "ray_actor_options": {"num_cpus": 0},
        "graceful_shutdown_timeout_s": 2,
        **HEALTH,
    }


def _resources(num_cpus: float, num_gpus: float, profile: Profile) -> dict[str, Any]:
    return {"num_cpus": num_cpus, "num_gpus": num_gpus if profile == "gpu" else 0}
