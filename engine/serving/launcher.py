"""Start the application on a Ray of its own, or on a running one, and stop it again."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import signal
import socket
import threading
import time
from pathlib import Path

import psutil

from engine.config import EngineConfig, HttpOptions
from engine.errors import ConfigError, SwitchyardError
from engine.retrieval.index.own_folder import OwnFolder
from engine.serving.haproxy.own import use_haproxy
from engine.serving.loopback import use_loopback

APP_NAME = "switchyard"
# Embedding batches and documents travel through the object store; answers do not.
OBJECT_STORE_BYTES = 256 * 1024 * 1024
# By actor calls first tokens come later; see docs/benchmarks/README.md, "What a hop costs". gRPC's own limit of a
# message, 4 MiB, is less than a gateway takes in one request of documents.
GRPC_ENVIRONMENT = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),
}
LINGER_S = 3.0
# Running answers get so long to end; in a rolling update they get all that they need.
DRAIN_S = 7.0
# Where one of them is gone, so is the rest of Ray's head within seconds, and nothing answers us.
HEAD_PROCESSES = ("gcs_server", "raylet", "ray::DashboardAgent")


class Launcher:
    """One running application. `start` returns when it answers; `stop` ends every process it started."""

    def __init__(self, config: EngineConfig, http: HttpOptions, address: str | None = None) -> None:
        self._config = config
        self._http = http
        self._address = address
        self._head: list[psutil.Process] = []  # of Ray, where it is ours
        self._haproxy: OwnFolder | None = None

    @property
    def url(self) -> str:
        """Where clients reach it; an unspecified host is reached through loopback."""
        host = "127.0.0.1" if self._http.host in ("0.0.0.0", "::") else self._http.host
        return f"http://{host}:{self._http.port}"

    def check(self) -> None:
        """Raise ConfigError when the port is taken, before anything is fetched or started."""
        _require_free_port(self._http.host, self._http.port)

    def start(self) -> None:
        """Start Ray (or join `address`), Serve and the application.

        Raises: SwitchyardError with the cause when a deployment cannot start.
        """
        _set_ray_environment(self._config.data, own_cluster=self._address is None)
        if self._address is None:
            self._haproxy = use_haproxy()
        # Ray reads its environment on import.
        import ray
        from ray import serve

        from engine.serving.application import build_app

        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        if self._address:
            ray.init(address=self._address, log_to_driver=False, logging_level=logging.WARNING)
        else:
            # "local": without it Ray joins whatever cluster was last started on this machine.
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
                object_store_memory=OBJECT_STORE_BYTES,
            )
        # Ray installs a handler of SIGTERM that aborts this process.
        for number, handler in handlers.items():
            signal.signal(number, handler)
        # What Serve tells the terminal of this process; its own log files keep everything.
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        quiet = {"log_level": "WARNING", "enable_access_log": False}
        serve.start(
            proxy_location="HeadOnly",
            http_options=self._http.model_dump(),
            logging_config=quiet,
        )
        try:
            serve.run(build_app(self._config), name=APP_NAME, route_prefix="/", logging_config=quiet)
        except RuntimeError as error:
            raise SwitchyardError(f"the application did not start: {_cause(APP_NAME) or error}") from None
        if not self._address:
            self._head = [process for process in psutil.Process().children(recursive=True) if _is_head(process)]

    def stop(self) -> bool:
        """Shut down Serve, and Ray where it is ours with every process that it started.

        False: Ray's client, which this process holds, still waits for answers to end, or for processes of Ray's that
        had ended before. Leave by `os._exit` then: it waits for them once more at the ordinary end of a process.
        """
        try:
            return self._stop_ray()
        finally:
            if self._haproxy is not None:
                self._haproxy.remove()

    def _stop_ray(self) -> bool:
        import ray

        if not ray.is_initialized():
            return True
        started = [] if self._address else psutil.Process().children(recursive=True)
        leaving = threading.Thread(target=_leave, name="leave ray", daemon=True)
        leaving.start()
        give_up_at = time.monotonic() + DRAIN_S
        # A signal to the whole process group ends Ray's head too, and nothing answers `_leave` any more.
        while leaving.is_alive() and all(process.is_running() and not _is_zombie(process) for process in self._head):
            if time.monotonic() > give_up_at:
                break
            leaving.join(0.1)
        else:
            leaving.join(LINGER_S)
        # Ray's agents notice that it is gone only after a while, and a replica may hang in a forward.
        _, left = psutil.wait_procs(started, timeout=LINGER_S)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=LINGER_S)
        return not leaving.is_alive()


def _leave() -> None:
    import ray
    from ray import serve

    serve.delete(APP_NAME)
    ray.shutdown()


def _is_head(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name() in HEAD_PROCESSES
    return False


def _is_zombie(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def _require_free_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port} ({error.strerror}). Stop what runs there, or choose another --port."
            ) from None


def _set_ray_environment(data: Path, *, own_cluster: bool) -> None:
    """Choose what Ray would otherwise choose by default: no usage reports, token authentication, a patient start.

    The token of our own cluster lives in the data folder; Ray's default would be the user's home folder.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Seconds. After Ray's 5 the proxy of a busy machine, still importing, is killed, and the start with it.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    if not own_cluster:
        return
    use_loopback()
    for name, value in GRPC_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "RAY_AUTH_MODE" in os.environ:
        return
    token_path = data / "ray_token"
    if not token_path.exists():
        descriptor = os.open(token_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_path)


def _cause(app_name: str) -> str | None:
    """The message of the deployment that failed, without the tracebacks around it."""
    from ray import serve

    app = serve.status().applications.get(app_name)
    if app is None:
        return None
    failed = [f"{name}: {status.message}" for name, status in app.deployments.items() if "FAILED" in status.status.name]
    return _last_line(failed[0]) if failed else _last_line(app.message)


def _last_line(text: str) -> str:
    """The message at the end of a traceback, without the name of its class."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^engine\.errors\.\w+: ", "", lines[-1]) if lines else text
