"""Files for `serve deploy` and `switchyard serve`: both read them, and they mean what their names say."""

from __future__ import annotations

import pytest
from deploy_files import DEPLOY, check_serve_config, load

from engine.config import parse_config, read_serve_file

FILES = sorted((DEPLOY / "serve").glob("*.yaml"))
CONFIGS = {path.stem: parse_config(read_serve_file(path).args, path.name) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_example_is_taken_by_ray_serve_and_by_the_engine(path):
    (raw,) = load(path.read_text())
    check_serve_config(raw)
    config = CONFIGS[path.stem]
    assert config.profile == "gpu" and config.data.is_absolute()


def test_examples_are_for_one_eight_and_eight_gpus_on_each_of_many_machines():
    replicas = {name: config.generator.num_replicas for name, config in CONFIGS.items()}
    assert replicas == {"one-gpu": 1, "eight-gpus": 8, "many-nodes": 16}


@pytest.mark.parametrize("name", CONFIGS)
def test_generator_and_retriever_fit_on_one_gpu_and_two_generators_do_not(name):
    config = CONFIGS[name]
    assert config.generator.num_gpus + config.retriever.num_gpus <= 1 < 2 * config.generator.num_gpus


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_listens_beyond_loopback_asks_for_a_key(path):
    if read_serve_file(path).http.host != "127.0.0.1":
        assert CONFIGS[path.stem].gateway.api_key_sha256
