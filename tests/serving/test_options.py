"""Settings become options of Ray Serve."""

from __future__ import annotations

from engine.config import parse_config
from engine.serving.autoscaling import FleetLoad
from engine.serving.options import adapters_options, generator_options
from engine.serving.replica_router import ReplicaRouter


def test_generator_has_as_many_replicas_as_its_setting_says_and_their_adapters_one_owner():
    several = parse_config({"generator": {"num_replicas": 3}}, "test")
    assert generator_options(several, "cpu")["num_replicas"] == 3
    assert generator_options(parse_config({}, "test"), "cpu")["num_replicas"] == 1
    options = adapters_options(several)
    assert options["num_replicas"] == 1
    # Each replica waits there for news all the time, and one that it replaced may for a while.
    assert options["max_ongoing_requests"] >= 2 * 3 + 2


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
    # A replica that goes has as long as a request may take.
    assert options["graceful_shutdown_timeout_s"] == scaled.gateway.default_deadline_ms / 1000
    assert adapters_options(scaled)["max_ongoing_requests"] >= 2 * 3 + 2
