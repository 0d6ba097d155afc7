"""What the launcher asks of Ray."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from engine.config import GatewaySettings
from engine.serving.launcher import GRPC_ENVIRONMENT, _set_ray_environment

GRPC, LIMIT = GRPC_ENVIRONMENT
PATIENCE = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"


@pytest.mark.parametrize(("given", "set_to"), [(None, "60"), ("90", "90")])
def test_proxy_of_a_busy_machine_is_waited_for_unless_the_environment_says_otherwise(
    tmp_path, monkeypatch, given, set_to
):
    monkeypatch.setattr(os, "environ", {} if given is None else {PATIENCE: given})
    _set_ray_environment(tmp_path, own_cluster=False)
    assert os.environ[PATIENCE] == set_to
    assert PATIENCE in what_ray_serve_reads()


@pytest.mark.parametrize("chosen", [None, "0"])
def test_deployments_of_its_own_ray_talk_by_grpc_unless_the_environment_says_otherwise(tmp_path, monkeypatch, chosen):
    monkeypatch.setattr(os, "environ", {} if chosen is None else {GRPC: chosen})
    _set_ray_environment(tmp_path, own_cluster=True)
    assert os.environ[GRPC] == (chosen or "1")
    assert int(os.environ[LIMIT]) > GatewaySettings().max_document_bytes
    assert GRPC in what_ray_serve_reads() and LIMIT in what_ray_serve_reads()


def what_ray_serve_reads() -> str:
    """A variable that it no longer reads would change nothing."""
    ray = find_spec("ray")
    assert ray is not None and ray.origin is not None
    return Path(ray.origin).with_name("serve").joinpath("_private/constants.py").read_text()
