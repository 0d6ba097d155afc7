"""Ray nodes on this machine: each is a `ray start --block` of its own, which can be killed like a machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from engine.errors import SwitchyardError
from engine.serving.launcher import GRPC_ENVIRONMENT
from loadtest.ports import free_port

BIN = Path(sys.executable).parent
_OBJECT_STORE_BYTES = 200_000_000
_START_S = 60.0
_READY_S = 180.0
_STOP_S = 15.0
# A node that says nothing for so long is dead; Ray's own 15 s are for networks that lose packets.
_HEALTH = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}


@dataclass(frozen=True)
class Node:
    """A running `ray start --block`."""

    process: subprocess.Popen[bytes]
    log: Path

    def processes(self) -> list[psutil.Process]:
        """Itself and all that it started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        return []

    def kill(self) -> None:
        """End its raylet without a word. What ran on the node ends with it, as on a machine that lost power."""
        for process in self.processes():
            if process.name() == "raylet":
                process.kill()
                return
        raise SwitchyardError(f"the node has no raylet any more; see {self.log}")


class LocalCluster:
    """A head and nodes that join it, on loopback. A context manager that ends all of them."""

    def __init__(self, folder: Path) -> None:
        """`folder` takes the logs."""
        self._folder = folder
        # Ray's sockets lie below it, and a socket's path has at most 107 bytes.
        self._ray_folder = Path(tempfile.mkdtemp(prefix="sy-"))
        self._port, self._dashboard_port = free_port(), free_port()
        self._environment = {
            **os.environ,
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
            **GRPC_ENVIRONMENT,
            **_HEALTH,
        }
        self.nodes: list[Node] = []

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(self, *_raised: object) -> None:
        started = [process for node in self.nodes for process in node.processes()]
        for node in reversed(self.nodes):
            if node.process.poll() is None:
                node.process.terminate()
        left = psutil.wait_procs(started, timeout=_STOP_S)[1]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for node in self.nodes:
            node.process.wait(timeout=5)

    @property
    def dashboard(self) -> str:
        """What `serve deploy` talks to."""
        return f"http://127.0.0.1:{self._dashboard_port}"

    def start_head(self, *, num_cpus: int) -> Node:
        """Start the node that every other one joins. `num_cpus`: as Ray counts them."""
        return self._start(
            "--head",
            *("--port", str(self._port), "--num-cpus", f"{num_cpus}"),
            *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(self._dashboard_port)),
            *("--temp-dir", str(self._ray_folder)),
        )

    def add_node(self, *, num_cpus: int) -> Node:
        """Start a node; it is there when this returns."""
        before = self._num_alive()
        node = self._start(f"--address=127.0.0.1:{self._port}", "--num-cpus", f"{num_cpus}")
        deadline = time.monotonic() + _START_S
        while self._num_alive() <= before:
            if node.process.poll() is not None or time.monotonic() > deadline:
                raise SwitchyardError(f"the node did not join: {node.log.read_text()[-500:]}")
            time.sleep(0.2)
        return node

    def deploy(self, config: dict[str, Any]) -> str:
        """`serve deploy` such a file, and return the URL of the application once that is ready."""
        file = self._folder / "serve_config.yaml"
        file.write_text(yaml.safe_dump(config))
        deadline = time.monotonic() + _START_S
        while True:
            command = [str(BIN / "serve"), "deploy", "--address", self.dashboard, str(file)]
            done = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=_READY_S)
            if done.returncode == 0:
                break
            if time.monotonic() > deadline:
                raise SwitchyardError(f"serve deploy failed: {done.stderr[-500:]}")
            time.sleep(1)
        url = f"http://127.0.0.1:{config['http_options']['port']}"
        deadline = time.monotonic() + _READY_S
        while not self._runs() or not is_ready(url):
            if time.monotonic() > deadline:
                raise SwitchyardError(f"the application did not become ready: {self.status()}")
            time.sleep(0.5)
        return url

    def status(self) -> dict[str, Any]:
        """What the dashboard says of Serve."""
        answer: dict[str, Any] = httpx.get(f"{self.dashboard}/api/serve/applications/", timeout=20).json()
        return answer

    def replicas(self, deployment: str, *, every: bool = False) -> list[dict[str, Any]]:
        """The running replicas of a deployment, with `node_id` and `pid`; also those that start or end: `every`."""
        for application in self.status()["applications"].values():
            found = application["deployments"].get(deployment)
            if found is not None:
                return [replica for replica in found["replicas"] if every or replica["state"] == "RUNNING"]
        return []

    def _runs(self) -> bool:
        applications = self.status()["applications"].values()
        return bool(applications) and all(each["status"] == "RUNNING" for each in applications)

    def _num_alive(self) -> int:
        rows = httpx.get(f"{self.dashboard}/api/v0/nodes", timeout=20).json()["data"]["result"]["result"]
        return sum(row["state"] == "ALIVE" for row in rows)

    def _start(self, *options: str) -> Node:
        log = self._folder / f"node-{len(self.nodes)}.log"
        command = [str(BIN / "ray"), "start", "--block", "--node-ip-address", "127.0.0.1", *options]
        command += ["--object-store-memory", str(_OBJECT_STORE_BYTES)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env=self._environment, stdout=output, stderr=output, cwd=self._folder, start_new_session=True
            )
        node = Node(process, log)
        self.nodes.append(node)
        deadline = time.monotonic() + _START_S
        while "Ray runtime started" not in log.read_text() or not self._has_dashboard():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SwitchyardError(f"the node did not start: {log.read_text()[-500:]}")
            time.sleep(0.2)
        return node

    def _has_dashboard(self) -> bool:
        try:
            return httpx.get(f"{self.dashboard}/api/version", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False


@contextlib.contextmanager
def local_cluster() -> Iterator[LocalCluster]:
    """A cluster without nodes yet, and a folder of its own for their logs."""
    with tempfile.TemporaryDirectory(prefix="switchyard-cluster-") as folder, LocalCluster(Path(folder)) as cluster:
        yield cluster


def is_ready(url: str) -> bool:
    """Whether the application answers that it can answer."""
    try:
        return bool(httpx.get(f"{url}/readyz", timeout=10).json()["ready"])
    except (httpx.HTTPError, ValueError, KeyError):
        return False
