"""How a server ends when everything that it started is told to end with it, as a terminal or a supervisor does."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from running_server import STOP_TIMEOUT_S, is_alive, start_server


@pytest.mark.chaos
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_the_whole_process_group_ends_the_server_and_leaves_nothing(tmp_path: Path, tiny_models, number):
    server = start_server(tmp_path, *tiny_models)
    started = server.processes()
    try:
        os.killpg(server.process.pid, number)
        assert server.process.wait(timeout=STOP_TIMEOUT_S) == 0
        assert not [process.name() for process in started if is_alive(process)]
        assert not (server.data / "server.json").exists()
    finally:
        server.stop()
