"""Ray Serve options of each deployment, from the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, BackpressureConfig, RequestRouterConfig

from engine.config import AutoscalingSettings, EngineConfig, GeneratorSettings, Profile
from engine.errors import ConfigError
from engine.generation.adapters.fleet import TIMEOUT_S
from engine.serving.rollout import Replica, max_surge_percent

# Often enough that what a router knows of a replica is mostly what that does; each time, every gateway hears of it.
STATS_PERIOD_S = 1.0

# Where deployments talk by gRPC, `max_queued_requests` is how many calls a gateway may have under way at all replicas
# of another deployment: Ray Serve takes a call for accepted when it is answered.

# A replica whose check fails three times in a row is replaced: at most 45 s after it stopped making progress.
HEALTH = {"health_check_period_s": 5, "health_check_timeout_s": 10}

# A replica that is to go finishes what it has begun. Gateways end every request at its deadline; this much later the
# replica is ended whatever it does.
_END_MARGIN_S = 10.0
# Of what takes milliseconds, or seconds where it writes.
_SHORT_ANSWERS_S = 30.0
# The one before may still end its last answers when the owner of the store starts.
HANDOVER_S = _SHORT_ANSWERS_S + _END_MARGIN_S


def resolve_profile(profile: Profile, num_gpus: float) -> Profile:
    """`cpu` or `gpu`; `auto` takes the GPU when the cluster has one."""
    if profile == "auto":
        return "gpu" if num_gpus > 0 else "cpu"
    return profile


def device(profile: Profile) -> str:
    """The torch device of a replica that Ray placed."""
    return "cuda" if profile == "gpu" else "cpu"


def longest_answer_s(config: EngineConfig) -> float:
    """How long a replica that is to go may go on answering."""
    return config.gateway.max_deadline_ms / 1000 + _END_MARGIN_S


def rolling_options(
    config: EngineConfig, deployments: Mapping[str, dict[str, Any]], free: Sequence[Mapping[str, float]]
) -> dict[str, dict[str, Any]]:
    """By deployment, the options of those that may run twice while they are updated, from their other options.

    `free`: see max_surge_percent.
    """
    replicas = [Replica(name, _reserved(each), _num_replicas(each)) for name, each in deployments.items()]
    percents = max_surge_percent(config.rolling_update, replicas, free)
    return {name: {**each, "max_surge_percent": percents[name]} for name, each in deployments.items()}


def _reserved(deployment: Mapping[str, Any]) -> dict[str, float]:
    """What a replica takes of one machine."""
    bundles = deployment.get("placement_group_bundles")
    if bundles is not None:
        return {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in bundles[0]}
    actor = deployment["ray_actor_options"]
    return {"CPU": actor["num_cpus"], "GPU": actor.get("num_gpus", 0.0)}


def _num_replicas(deployment: Mapping[str, Any]) -> int:
    scaled = deployment.get("autoscaling_config")
    return int(deployment.get("num_replicas", 1) if scaled is None else scaled.max_replicas)


def gateway_options(config: EngineConfig) -> dict[str, Any]:
    gateway = config.gateway
    return {
        "num_replicas": gateway.num_replicas,
        "max_ongoing_requests": gateway.max_ongoing_requests,
        # Requests beyond those in flight are refused by the proxy with 503, rather than kept waiting unseen.
        "max_queued_requests": gateway.max_ongoing_requests,
        "backpressure_config": BackpressureConfig(status_code=503, retry_after_s=1),
        "ray_actor_options": {"num_cpus": gateway.num_cpus},
        "graceful_shutdown_timeout_s": longest_answer_s(config),
        **HEALTH,
    }


def router_options(config: EngineConfig) -> dict[str, Any]:
    return {
        "max_ongoing_requests": config.gateway.max_ongoing_requests,
        "max_queued_requests": config.gateway.max_ongoing_requests,
        "ray_actor_options": {"num_cpus": config.router.num_cpus},
        "graceful_shutdown_timeout_s": _SHORT_ANSWERS_S,
        **HEALTH,
    }


def retriever_options(config: EngineConfig, profile: Profile) -> dict[str, Any]:
    retriever = config.retriever
    # Each shard of the vectors has a GPU of its own.
    num_gpus = retriever.num_gpus if retriever.shards == 1 else max(retriever.num_gpus, retriever.shards)
    return {
        # More than one follow the log of a deployment Writer, which owns the store.
        "num_replicas": retriever.num_replicas,
        "max_ongoing_requests": retriever.max_queued_queries,
        "max_queued_requests": retriever.max_queued_queries * retriever.num_replicas,
        "ray_actor_options": _resources(retriever.num_cpus, num_gpus, profile),
        "graceful_shutdown_timeout_s": _SHORT_ANSWERS_S,
        **HEALTH,
    }


def generator_options(config: EngineConfig, profile: Profile) -> dict[str, Any]:
    generator = config.generator
    # A little above what the engine admits, so that the engine's own bounded queue is the one that refuses.
    ongoing = generator.max_num_seqs + generator.max_queued + 8
    options: dict[str, Any] = {
        "max_ongoing_requests": ongoing,
        "max_queued_requests": ongoing * generator.most_replicas,
        "ray_actor_options": _resources(generator.num_cpus, generator.num_gpus, profile),
        "graceful_shutdown_timeout_s": longest_answer_s(config),
        **_ranks_options(generator, profile),
        **HEALTH,
    }
    if generator.has_several:
        options["request_router_config"] = RequestRouterConfig(
            request_router_class="engine.serving.replica_router:ReplicaRouter",
            request_routing_stats_period_s=STATS_PERIOD_S,
        )
    if generator.autoscaling is None:
        return {"num_replicas": generator.num_replicas, **options}
    return {"autoscaling_config": _autoscaling(generator.autoscaling), **options}


def _autoscaling(settings: AutoscalingSettings) -> AutoscalingConfig:
    return AutoscalingConfig(
        min_replicas=settings.min_replicas,
        max_replicas=settings.max_replicas,
        look_back_period_s=12,  # replicas tell every 10 s; Ray Serve wants more than that
        # The policy has delays of its own.
        upscale_delay_s=0,
        downscale_delay_s=0,
        policy=AutoscalingPolicy(
            policy_function="engine.serving.autoscaling:ScalingPolicy",
            policy_kwargs=settings.model_dump(include={"waiting_tokens", "upscale_delay_s", "downscale_delay_s"}),
        ),
    )


def adapters_options(config: EngineConfig) -> dict[str, Any]:
    # Replicas that wait for news, and copy files; people who change something.
    ongoing = 4 * config.generator.most_replicas + 32
    return {
        "num_replicas": 1,  # the folder of adapters has one owner
        "max_ongoing_requests": ongoing,
        "max_queued_requests": ongoing,
        "ray_actor_options": {"num_cpus": 0},
        # A change is answered when every replica of the generator has it.
        "graceful_shutdown_timeout_s": TIMEOUT_S + _END_MARGIN_S,
        **HEALTH,
    }


def _ranks_options(generator: GeneratorSettings, profile: Profile) -> dict[str, Any]:
    """One placement group a replica, all of it on one machine; the replica itself is in the first bundle."""
    if generator.tensor_parallel == 1:
        return {}
    if profile == "gpu" and generator.num_gpus <= 0.5:
        raise ConfigError(
            f"generator.tensor_parallel={generator.tensor_parallel} needs a GPU for each process, and with "
            f"generator.num_gpus={generator.num_gpus} two may get the same. Set that above 0.5."
        )
    bundle = {"CPU": generator.num_cpus, "GPU": generator.num_gpus if profile == "gpu" else 0}
    # Ray takes no empty bundle.
    wanted = {name: amount for name, amount in bundle.items() if amount} or {"CPU": 0.01}
    return {
        "placement_group_bundles": [wanted] * generator.tensor_parallel,
        "placement_group_strategy": "STRICT_PACK",
    }


def _resources(num_cpus: float, num_gpus: float, profile: Profile) -> dict[str, Any]:
    return {"num_cpus": num_cpus, "num_gpus": num_gpus if profile == "gpu" else 0}
