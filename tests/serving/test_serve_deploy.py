"""`serve deploy` of the committed serve_config.yaml on a Ray cluster that the test starts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from running_server import free_port, is_alive

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture
def dashboard(environment, tmp_path) -> Iterator[str]:
    """A Ray head node; yields the address of its dashboard, which `serve deploy` talks to."""
    port, gcs_port = free_port(), free_port()
    command = [BIN / "ray", "start", "--head", "--block", "--port", str(gcs_port), "--dashboard-host", "127.0.0.1"]
    command += ["--dashboard-port", str(port), "--object-store-memory", "200000000"]
    with (tmp_path / "ray.log").open("wb") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tmp_path)
    yield f"http://127.0.0.1:{port}"
    started = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
    head.terminate()
    deadline = time.monotonic() + 15
    while any(map(is_alive, started)) and time.monotonic() < deadline:
        time.sleep(0.2)
    for process in filter(is_alive, started):
        process.kill()
    head.wait(timeout=5)


def deploy(dashboard: str, environment: dict[str, str], config: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        command = [BIN / "serve", "deploy", "--address", dashboard, str(config)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        if done.returncode == 0:
            return
        assert time.monotonic() < deadline, done.stderr
        time.sleep(1)


def status(dashboard: str, environment: dict[str, str]) -> str:
    command = [BIN / "serve", "status", "--address", dashboard]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120).stdout


def test_serve_deploy_runs_the_committed_file_and_refuses_a_mistyped_key(dashboard, environment, tmp_path, tiny_models):
    raw = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())
    port = raw["http_options"]["port"] = free_port()
    args = raw["applications"][0]["args"]
    args["data"] = str(tmp_path / "data")
    for assignment in tiny_models[1::2]:
        key, _, value = assignment.partition("=")
        group, _, name = key.partition(".")
        args.setdefault(group, {})[name] = yaml.safe_load(value)
    config = tmp_path / "serve_config.yaml"
    config.write_text(yaml.safe_dump(raw))
    deploy(dashboard, environment, config)
    deadline = time.monotonic() + 120
    while True:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=10).json()["ready"]:
                break
        except (httpx.HTTPError, ValueError):
            pass
        assert time.monotonic() < deadline, status(dashboard, environment)
        time.sleep(0.5)
    body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text

    args["generator"]["max_num_seq"] = 4
    config.write_text(yaml.safe_dump(raw))
    deploy(dashboard, environment, config)
    deadline = time.monotonic() + 180
    while "did you mean max_num_seqs?" not in (seen := status(dashboard, environment)):
        assert time.monotonic() < deadline, seen
        time.sleep(1)
