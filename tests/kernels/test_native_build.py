"""The native kernels are built once, fall back where that fails, and share torch's threads."""

from __future__ import annotations

import os
import platform
import re
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import kernels
from kernels.dispatch import choose_backend
from kernels.native import absence
from kernels.native.build import FLAGS, BuildError, build

needs_native = pytest.mark.skipif(absence() is not None, reason=f"no native kernels: {absence()}")


@pytest.mark.skipif(os.environ.get("SWITCHYARD_NATIVE") == "0", reason="SWITCHYARD_NATIVE=0 turns native kernels off")
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler is installed")
def test_sources_compile_where_there_is_a_compiler():
    # Every other test of a native kernel is skipped where there is none, so one that does not compile hides them all.
    assert absence() is None


@pytest.mark.skipif(shutil.which("g++") is None or platform.machine() != "x86_64", reason="needs g++ on x86-64")
@pytest.mark.parametrize("processor", ["x86-64", "x86-64-v3", "x86-64-v4", "cooperlake"])
def test_sources_compile_for_other_processors(tmp_path: Path, processor: str):
    flags = [flag for flag in FLAGS if flag != "-march=native"]
    sources = [str(path) for path in Path(kernels.__file__).parent.glob("*/native*.cpp")]
    include = Path(kernels.__file__).parent / "native"
    command = ["g++", *flags, "-O0", f"-march={processor}", f"-I{include}", *sources, "-o", str(tmp_path / "all.so")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@needs_native
def test_two_builds_at_once_leave_one_whole_library(tmp_path: Path):
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(build, [tmp_path, tmp_path])
    assert first == second and [file.name for file in (tmp_path / "native").iterdir()] == [first.name]
    before = first.stat().st_mtime_ns
    assert build(tmp_path).stat().st_mtime_ns == before


def test_compiler_that_fails_is_named_with_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    broken = tmp_path / "broken-c++"
    broken.write_text("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'x.cpp:1: error: out of order' >&2\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(BuildError, match=r"broken-c\+\+ failed: x\.cpp:1: error: out of order"):
        build(tmp_path)


def test_missing_compiler_is_said_with_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BuildError, match=r"no C\+\+ compiler is installed .*apt-get install g\+\+"):
        build(tmp_path)


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_torch_runs_where_native_kernels_are_turned_off():
    code = """
import torch
from kernels.rms_norm import rms_norm
print(rms_norm(torch.ones(1, 4), torch.ones(4), 0.0).tolist())
try:
    rms_norm(torch.ones(1, 4), torch.ones(4), 0.0, backend="native")
except RuntimeError as error:
    print(error)
"""
    out = run_python(code, SWITCHYARD_NATIVE="0")
    assert "[[1.0, 1.0, 1.0, 1.0]]" in out
    assert "rms_norm: backend 'native' is absent: SWITCHYARD_NATIVE=0 turns it off" in out


@needs_native
def test_process_holds_one_openmp_runtime():
    code = """
from kernels.native import library
library()
print(open("/proc/self/maps").read())
"""
    runtimes = set(re.findall(r"\S*lib(?:g|i)omp\S*", run_python(code)))
    assert len(runtimes) == 1 and "torch" in runtimes.pop()


def test_import_of_an_operation_compiles_nothing(tmp_path: Path):
    run_python("import kernels.paged_attention, kernels.sampling", SWITCHYARD_CACHE=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_absent_backend_is_named():
    with pytest.raises(RuntimeError, match="rms_norm: backend 'triton' is absent"):
        choose_backend("rms_norm", "triton", torch.device("cpu"))  # type: ignore[arg-type]
