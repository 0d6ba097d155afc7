"""What a benchmark ran on: machine, package versions and commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import engine
from engine.config import usable_cores

REPOSITORY = Path(__file__).resolve().parent.parent

# Extensions that change which matrix kernels run, as /proc/cpuinfo names them on x86-64 and on Arm.
INSTRUCTION_SETS = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)

PACKAGES = (
    *("torch", "triton", "transformers", "peft", "ray", "numpy", "tokenizers"),
    *("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "sentence-transformers", "llama-cpp-python", "vllm", "flash-attn"),
)


def machine_info() -> dict[str, Any]:
    """CPU model, cores this process may use, instruction sets that matter, memory in bytes, GPUs that torch sees."""
    cpuinfo = _cpuinfo()
    flags = set((cpuinfo.get("flags") or cpuinfo.get("Features") or "").split())
    return {
        "cpu": cpuinfo.get("model name") or platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": _gpus(),
        "os": platform.platform(),
    }


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _gpus() -> list[dict[str, Any]]:
    # A load test's client must not wait for it before it starts.
    import torch

    if not torch.cuda.is_available():
        return []
    found = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in found]


def versions() -> dict[str, str]:
    """Python, Switchyard and each package of PACKAGES that is installed."""
    found = {"python": platform.python_version(), "switchyard": engine.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit(repository: Path = REPOSITORY) -> str:
    """The checkout's commit, with "+dirty" when any file differs from it; "unknown" outside a checkout."""
    head = _git(repository, "rev-parse", "--verify", "HEAD")
    top = _git(repository, "rev-parse", "--show-toplevel")
    # A copy inside somebody else's repository must not be given that repository's commit.
    if head is None or top is None or Path(top).resolve() != repository.resolve():
        return "unknown"
    return head + ("+dirty" if _git(repository, "status", "--porcelain") != "" else "")


def _git(repository: Path, *arguments: str) -> str | None:
    try:
        # A benchmark must not refresh the index of a checkout that others work in.
        command = ["git", "--no-optional-locks", *arguments]
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
