from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

import engine
from engine.config import usable_cores
from loadtest.environment import commit, machine_info, versions


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository of its own with one commit."""
    (tmp_path / "file").write_text("a")
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    for arguments in (("init", "-q"), ("add", "file"), (*identity, "commit", "-q", "-m", "first")):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    return tmp_path


def test_commit_is_the_head_of_a_clean_checkout(checkout: Path) -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, check=True, capture_output=True, text=True)
    assert commit(checkout) == head.stdout.strip()


@pytest.mark.parametrize("name", ["file", "untracked"])
def test_commit_is_dirty_when_a_file_differs(checkout: Path, name: str) -> None:
    (checkout / name).write_text("b")
    assert commit(checkout).endswith("+dirty")


def test_commit_is_unknown_outside_a_checkout(tmp_path: Path) -> None:
    assert commit(tmp_path) == "unknown"


def test_commit_is_unknown_for_a_copy_inside_another_repository(checkout: Path) -> None:
    copy = checkout / "vendored"
    copy.mkdir()
    assert commit(copy) == "unknown"


def test_machine_info_names_processor_cores_and_memory() -> None:
    machine = machine_info()
    assert machine["cpu"]
    assert machine["cores"] == usable_cores()
    assert machine["memory_bytes"] > 2**28
    assert isinstance(machine["gpus"], list)


def test_machine_info_lists_only_instruction_sets_that_the_processor_has() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("needs /proc/cpuinfo")
    words = set(cpuinfo.read_text().split())
    listed = machine_info()["instruction_sets"]
    assert set(listed) <= words
    assert ("avx2" in listed) is ("avx2" in words)


def test_versions_name_python_switchyard_and_what_is_installed() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["switchyard"] == engine.__version__
    assert found["torch"].split(".")[0].isdecimal()
    assert all(found.values())
