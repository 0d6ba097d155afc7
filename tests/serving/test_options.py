"""Settings become options of Ray Serve."""

from __future__ import annotations

import pytest

from engine.config import Profile, parse_config
from engine.errors import ConfigError
from engine.serving.autoscaling import FleetLoad
from engine.serving.options import adapters_options, gateway_options, generator_options, retriever_options
from engine.serving.replica_router import ReplicaRouter


def test_generator_has_as_many_replicas_as_its_setting_says_and_their_adapters_one_owner():
    several = parse_config({"generator": {"num_replicas": 3}}, "test")
    assert generator_options(several, "cpu")["num_replicas"] == 3
    assert generator_options(parse_config({}, "test"), "cpu")["num_replicas"] == 1
    options = adapters_options(several)
    assert options["num_replicas"] == 1
    # Each replica waits there for news all the time, and one that it replaced may for a while.
    assert options["max_ongoing_requests"] >= 2 * 3 + 2


def test_tensor_parallel_processes_are_one_placement_group_on_one_machine():
    config = parse_config({"generator": {"tensor_parallel": 3, "num_cpus": 2}}, "test")
    on_gpus = generator_options(config, "gpu")
    assert on_gpus["placement_group_bundles"] == [{"CPU": 2, "GPU": 0.9}] * 3
    assert on_gpus["placement_group_strategy"] == "STRICT_PACK"
    assert generator_options(config, "cpu")["placement_group_bundles"] == [{"CPU": 2}] * 3
    assert "placement_group_bundles" not in generator_options(parse_config({}, "test"), "gpu")


def test_tensor_parallel_processes_do_not_share_a_gpu():
    config = parse_config({"generator": {"tensor_parallel": 2, "num_gpus": 0.5}}, "test")
    with pytest.raises(ConfigError, match=r"num_gpus=0\.5 two may get the same"):
        generator_options(config, "gpu")
    assert generator_options(config, "cpu")["placement_group_bundles"] == [{"CPU": 0.5}] * 2


def test_retriever_reserves_a_whole_gpu_for_each_shard_and_a_share_of_one_without():
    def num_gpus(profile: Profile, **settings: float) -> float:
        return retriever_options(parse_config({"retriever": settings}, "test"), profile)["ray_actor_options"][
            "num_gpus"
        ]

    assert num_gpus("gpu", num_gpus=0.1) == 0.1
    assert num_gpus("gpu", num_gpus=0.1, shards=3) == 3
    assert num_gpus("cpu", num_gpus=0.1, shards=3) == 0


def test_requests_are_placed_by_what_replicas_say_only_where_there_are_several():
    assert "request_router_config" not in generator_options(parse_config({}, "test"), "cpu")
    options = generator_options(parse_config({"generator": {"num_replicas": 2}}, "test"), "cpu")
    assert issubclass(options["request_router_config"].get_request_router_class(), ReplicaRouter)


def test_autoscaling_settings_become_the_policy_of_the_generator():
    scaled = parse_config({"generator": {"autoscaling": {"max_replicas": 3, "waiting_tokens": 100}}}, "test")
    options = generator_options(scaled, "cpu")
    assert "num_replicas" not in options and "request_router_config" in options
    autoscaling = options["autoscaling_config"]
    assert (autoscaling.min_replicas, autoscaling.max_replicas) == (1, 3)
    made = autoscaling.policy.get_policy()(**autoscaling.policy.policy_kwargs)
    waits = FleetLoad(101, 0, 0)
    assert made.decide(waits, 1, 1, least=1, most=3, now_s=0) == 1
    assert made.decide(waits, 1, 1, least=1, most=3, now_s=20) == 2
    assert adapters_options(scaled)["max_ongoing_requests"] >= 2 * 3 + 2


def test_retriever_has_as_many_replicas_as_its_setting_says():
    several = parse_config({"retriever": {"num_replicas": 3}}, "test")
    assert retriever_options(several, "cpu")["num_replicas"] == 3
    assert retriever_options(parse_config({}, "test"), "cpu")["num_replicas"] == 1


def test_client_of_a_full_gateway_is_told_when_to_come_back():
    options = gateway_options(parse_config({"gateway": {"max_ongoing_requests": 7}}, "test"))
    assert (options["max_ongoing_requests"], options["max_queued_requests"]) == (7, 7)
    assert (options["backpressure_config"].status_code, options["backpressure_config"].retry_after_s) == (503, 1)
