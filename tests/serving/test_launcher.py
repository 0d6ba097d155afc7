"""What the launcher asks of Ray."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from engine.serving.launcher import _set_ray_environment

PATIENCE = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"


@pytest.mark.parametrize(("given", "set_to"), [(None, "60"), ("90", "90")])
def test_proxy_of_a_busy_machine_is_waited_for_unless_the_environment_says_otherwise(
    tmp_path, monkeypatch, given, set_to
):
    monkeypatch.setattr(os, "environ", {} if given is None else {PATIENCE: given})
    _set_ray_environment(tmp_path, own_cluster=False)
    assert os.environ[PATIENCE] == set_to
    # A variable that Ray no longer reads would change nothing.
    ray = find_spec("ray")
    assert ray is not None and ray.origin is not None
    assert PATIENCE in Path(ray.origin).with_name("serve").joinpath("_private/constants.py").read_text()
