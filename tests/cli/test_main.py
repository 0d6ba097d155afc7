"""Every command: help with an example, exit codes, one line on failure."""

from __future__ import annotations

import subprocess

import pytest
from running_server import SWITCHYARD, free_port

from engine.cli.main import COMMANDS

NO_SERVER = f"http://127.0.0.1:{free_port()}"


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SWITCHYARD, *arguments], capture_output=True, text=True, timeout=120, **options)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command):
    done = run(command, "--help")
    assert done.returncode == 0, done.stderr
    assert "Example:" in done.stdout and f"switchyard {command}" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["ask"],
        ["ask", "x", "--route", "clarify"],
        ["search", "x", "--k", "0"],
        ["bench", "speed"],
        ["ingest"],
        ["jobs", "--follow"],
        ["jobs", "--cancel"],
        ["jobs", "0af3", "--cancel", "--follow"],
    ],
    ids=" ".join,
)
def test_bad_usage_ends_with_code_2(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["ask", "x"], ["search", "x"], ["jobs"]], ids=" ".join)
def test_client_commands_say_how_to_start_a_server_when_none_answers(arguments):
    done = run(*arguments, "--url", NO_SERVER)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"no server answers at {NO_SERVER}" in done.stderr and "switchyard serve" in done.stderr


def test_debug_shows_the_traceback():
    done = run("--debug", "ask", "x", "--url", NO_SERVER)
    assert "Traceback" in done.stderr


def test_a_url_that_is_none_is_named():
    done = run("ask", "x", "--url", "http://[nope")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and "http://[nope" in done.stderr


def test_stop_without_a_server_says_so(tmp_path):
    done = run("stop", "--data", str(tmp_path))
    assert (done.returncode, done.stdout) == (0, f"no server is running on {tmp_path}\n")
