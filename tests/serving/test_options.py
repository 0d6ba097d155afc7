"""Settings become options of Ray Serve."""

from __future__ import annotations

from engine.config import parse_config
from engine.serving.options import adapters_options, generator_options, retriever_options


def test_generator_has_as_many_replicas_as_its_setting_says_and_their_adapters_one_owner():
    several = parse_config({"generator": {"num_replicas": 3}}, "test")
    assert generator_options(several, "cpu")["num_replicas"] == 3
    assert generator_options(parse_config({}, "test"), "cpu")["num_replicas"] == 1
    options = adapters_options(several)
    assert options["num_replicas"] == 1
    # Each replica waits there for news all the time, and one that it replaced may for a while.
    assert options["max_ongoing_requests"] >= 2 * 3 + 2


def test_retriever_has_as_many_replicas_as_its_setting_says():
    several = parse_config({"retriever": {"num_replicas": 3}}, "test")
    assert retriever_options(several, "cpu")["num_replicas"] == 3
    assert retriever_options(parse_config({}, "test"), "cpu")["num_replicas"] == 1
