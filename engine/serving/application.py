"""The builder that serve_config.yaml names: settings in, a composed Ray Serve application out."""

# No `from __future__ import annotations`: Ray Serve reads the annotation of `build_app` and wants the class itself.

from typing import Any

import ray
from ray import serve
from ray._private.state import available_resources_per_node
from ray.serve import Application

from engine.config import EngineConfig, Profile
from engine.serving import options
from engine.serving.adapters import AdaptersDeployment
from engine.serving.gateway import GatewayDeployment
from engine.serving.generator import GeneratorDeployment
from engine.serving.reader import FollowerDeployment
from engine.serving.retriever import RetrieverDeployment
from engine.serving.router import RouterDeployment


def build_app(args: EngineConfig) -> Application:
    """Compose Gateway, Retriever, Generator, Router by `router.placement`, Writer for several retrievers, and Adapters
    for several generators.

    Ray Serve validates the `args:` of serve_config.yaml against the annotation, so a mistyped key fails the deploy.
    """
    num_gpus = ray.cluster_resources().get("GPU", 0) if ray.is_initialized() else 0
    profile = options.resolve_profile(args.profile, num_gpus)
    # Replicas have working directories of their own.
    folders = {"data": args.data.expanduser().absolute(), "router": args.router.absolute()}
    config = args.model_copy(update={**folders, "profile": profile})
    chosen = _options(config, profile)
    writer_options = options.retriever_options(config, profile)
    if config.retriever.num_replicas == 1:
        writer = retriever = _deployment(RetrieverDeployment, writer_options).bind(config, profile)
    else:
        writer_options["num_replicas"] = 1  # the store has one owner
        writer = _deployment(RetrieverDeployment, writer_options, name="Writer").bind(config, profile)
        retriever = _deployment(FollowerDeployment, chosen["Retriever"], name="Retriever").bind(config, profile)
    adapters = None
    if config.generator.has_several:
        adapters = _deployment(AdaptersDeployment, options.adapters_options(config)).bind(config)
    generator = _deployment(GeneratorDeployment, chosen["Generator"]).bind(config, profile, adapters)
    router = None
    if config.router.placement == "deployment":
        router = _deployment(RouterDeployment, chosen["Router"]).bind(config, retriever, generator)
    gateway = _deployment(serve.ingress()(GatewayDeployment), chosen["Gateway"], name="Gateway")
    return gateway.bind(config, retriever, writer, generator, router, adapters)


def _options(config: EngineConfig, profile: Profile) -> dict[str, dict[str, Any]]:
    """Options of the deployments that may run twice while they are updated, by name. The owners of the store and of the
    adapters of several generators may not.
    """
    found = {"Gateway": options.gateway_options(config)}
    if config.router.placement == "deployment":
        found["Router"] = options.router_options(config)
    found["Generator"] = options.generator_options(config, profile)
    if config.retriever.num_replicas > 1:
        found["Retriever"] = options.retriever_options(config, profile)
    # What replicas of now take is not free: they stay until the new ones answer.
    free = list(available_resources_per_node().values()) if ray.is_initialized() else []
    return options.rolling_options(config, found, free)


def _deployment(shell: type, shell_options: dict[str, Any], name: str | None = None) -> serve.Deployment:
    return serve.deployment(shell, name=name or shell.__name__.removesuffix("Deployment"), **shell_options)
