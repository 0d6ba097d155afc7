"""The library that runs without torch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.alone import FLAGS, SOURCES, absence

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.skipif(os.environ.get("SWITCHYARD_NATIVE") == "0", reason="SWITCHYARD_NATIVE=0 turns native kernels off")
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler is installed")
def test_sources_compile_where_there_is_a_compiler():
    assert absence() is None


@pytest.mark.skipif(shutil.which("g++") is None or platform.machine() != "x86_64", reason="needs g++ on x86-64")
@pytest.mark.parametrize("processor", ["x86-64", "x86-64-v3", "x86-64-v4", "cooperlake"])
def test_sources_compile_for_other_processors_without_a_warning(tmp_path, processor):
    flags = [flag for flag in FLAGS if flag != "-march=native"]
    command = ["g++", *flags, "-Wall", "-Wextra", "-Werror", f"-march={processor}", *map(str, SOURCES)]
    done = subprocess.run([*command, "-o", str(tmp_path / "all.so")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_numpy_and_python_stand_in_where_it_is_turned_off():
    code = (
        "import numpy; from kernels.near_rows import *; from kernels.word_runs import missing_words\n"
        "rows = pack_near_rows(numpy.eye(4, dtype=numpy.float32))\n"
        "print(near_rows(rows.rows[:1], rows, 2).tolist(), rows.panels, missing_words(['a', 'b'], 'b ab'))\n"
        "for call in (lambda: pack_near_rows(rows.rows, backend='native'),"
        " lambda: missing_words(['a'], '', backend='native')):\n"
        "  try: call()\n"
        "  except RuntimeError as error: print(error)"
    )
    environment = {**os.environ, "SWITCHYARD_NATIVE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout.splitlines() == [
        "[[1.0, 0.0]] None ['a']",
        "near_rows: backend 'native' is absent: SWITCHYARD_NATIVE=0 turns it off",
        "native kernels are absent: SWITCHYARD_NATIVE=0 turns it off",
    ], done.stderr


def test_a_router_decides_without_torch():
    code = (
        "import sys, numpy; import engine.serving.router_host\n"
        "from engine.routing.signals.neighbours import TrainingNeighbours, adapter_signals\n"
        "rows = numpy.eye(4, dtype=numpy.float32)\n"
        "print(adapter_signals(rows, {'bot': TrainingNeighbours(rows)}).values.shape, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "(4, 9) False", done.stderr
