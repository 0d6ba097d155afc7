"""Which implementation runs: by the arguments alone, and an absent one is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.dispatch import choose_backend

REPOSITORY = Path(__file__).parents[2]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_backend_without_an_implementation_is_absent_by_name_and_auto_goes_round_it():
    for backend in ("native", "triton"):
        with pytest.raises(RuntimeError, match=f"op: backend '{backend}' is absent: it has no such implementation"):
            choose_backend("op", backend, CPU, has_native=False)
    assert choose_backend("op", "auto", CPU, has_native=False) == "torch"
    assert choose_backend("op", "auto", CPU, has_native=False, has_triton=True) == "torch"


def test_native_backend_is_absent_for_tensors_on_a_gpu():
    with pytest.raises(RuntimeError, match="'native' is absent: it runs on a CPU, these tensors are on cuda"):
        choose_backend("op", "native", GPU)


def test_backend_that_nobody_knows_is_refused_with_those_there_are():
    with pytest.raises(RuntimeError, match="'cutlass' is absent; there is: auto, torch, native, triton"):
        choose_backend("op", "cutlass", CPU)  # type: ignore[arg-type]


def test_importing_every_operation_needs_no_triton_and_leaves_transformers_importable():
    code = """
import importlib, pathlib, sys
sys.modules["triton"] = None  # as if it were not installed
import transformers
for folder in sorted(pathlib.Path("kernels").glob("*/__init__.py")):
    importlib.import_module(f"kernels.{folder.parent.name}")
import torch, kernels
from kernels.masked_topk import masked_topk
from transformers import AutoModelForCausalLM
print(masked_topk(torch.ones(1, 2), torch.ones(3, 2), 2)[1].tolist(), kernels.__version__)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == "[[0, 1]] 0.0.0", done.stderr
