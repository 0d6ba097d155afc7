"""Which deployments start a new replica before an old one goes."""

from __future__ import annotations

import pytest

from engine.config import parse_config
from engine.serving.options import gateway_options, generator_options, longest_answer_s, rolling_options
from engine.serving.rollout import Replica, max_surge_percent

GATEWAY = Replica("Gateway", {"CPU": 1.0, "GPU": 0.0}, 2)
GENERATOR = Replica("Generator", {"CPU": 4.0, "GPU": 0.9}, 8)


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        ([{"CPU": 5.0, "GPU": 1.0}], {"Gateway": 50, "Generator": 12}),
        ([{"CPU": 5.0, "GPU": 0.1}], {"Gateway": 50, "Generator": 0}),
        ([{"CPU": 4.9, "GPU": 1.0}], {"Gateway": 50, "Generator": 0}),  # a gateway takes one CPU of them
        ([{"CPU": 1.0}, {"CPU": 4.0, "GPU": 0.9}], {"Gateway": 50, "Generator": 12}),
        ([{"CPU": 3.0, "GPU": 0.5}, {"CPU": 3.0, "GPU": 0.5}], {"Gateway": 50, "Generator": 0}),  # on no one machine
        ([{"GPU": 8.0}], {"Gateway": 0, "Generator": 0}),
        ([], {"Gateway": 0, "Generator": 0}),
    ],
)
def test_new_replica_starts_first_where_a_machine_has_room_for_it(free, expected):
    assert max_surge_percent("auto", [GATEWAY, GENERATOR], free) == expected


def test_mode_decides_where_it_is_set():
    assert max_surge_percent("start_first", [GENERATOR], []) == {"Generator": 12}
    assert max_surge_percent("stop_first", [GENERATOR], [{"CPU": 99.0, "GPU": 9.0}]) == {"Generator": 0}


@pytest.mark.parametrize("num_replicas", [1, 2, 3, 7, 28, 100, 1000])
def test_percent_is_one_replica_or_the_least_that_ray_takes(num_replicas):
    (percent,) = max_surge_percent("start_first", [Replica("x", {}, num_replicas)], []).values()
    # Ray rounds up.
    assert -(-percent * num_replicas // 100) == max(1, num_replicas // 100)


def test_options_say_what_a_replica_takes_of_one_machine():
    config = parse_config({"generator": {"tensor_parallel": 2, "num_cpus": 2}}, "test")
    deployments = {"Gateway": gateway_options(config), "Generator": generator_options(config, "gpu")}

    def percents(*free: dict[str, float]) -> list[int]:
        return [each["max_surge_percent"] for each in rolling_options(config, deployments, free).values()]

    assert percents({"CPU": 4.1, "GPU": 2.0}) == [100, 100]
    assert percents({"CPU": 4.1, "GPU": 1.0}, {"CPU": 4.1, "GPU": 1.0}) == [100, 0]
    scaled = parse_config({"generator": {"autoscaling": {"max_replicas": 4}}}, "test")
    found = rolling_options(scaled, {"Generator": generator_options(scaled, "cpu")}, [{"CPU": 9.0}])
    assert found["Generator"]["max_surge_percent"] == 25


def test_replica_that_goes_has_as_long_as_a_request_may_take():
    config = parse_config({"gateway": {"max_deadline_ms": 200_000}}, "test")
    assert longest_answer_s(config) > 200
    for options in (gateway_options(config), generator_options(config, "cpu")):
        assert options["graceful_shutdown_timeout_s"] == longest_answer_s(config)
