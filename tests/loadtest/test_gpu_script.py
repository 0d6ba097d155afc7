"""The script for a GPU, run dry on the CPU, without the packages that a GPU machine may lack."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from loadtest import gpu
from loadtest.generation import random_checkpoint
from loadtest.generation.random_checkpoint import SHAPES

REPOSITORY = Path(__file__).parents[2]


def test_dry_run_checks_parity_and_times_a_tiny_shape(tmp_path: Path):
    command = [sys.executable, "-m", "loadtest.gpu", "--dry-run", "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["parity"]["tiny"].startswith("4 of 4 answers equal")
    assert {row["case"] for row in content["rows"]} >= {"tiny free c=1", "tiny rag c=2", "tiny ttft warm"}
    assert all(ratio["value"] > 0 for ratio in content["ratios"])


def test_script_needs_neither_ray_nor_faiss():
    code = "import sys, loadtest.gpu; print([name for name in ('ray', 'faiss') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_parity_fails_where_the_engine_computes_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Other:
        """transformers, with another head."""

        @staticmethod
        def from_pretrained(path: Path, **options: object) -> object:
            model = gpu_model.from_pretrained(path, **options)
            with torch.no_grad():
                model.lm_head.weight.copy_(model.lm_head.weight.flip(0))
            return model

    gpu_model = gpu.AutoModelForCausalLM
    monkeypatch.setattr(gpu, "AutoModelForCausalLM", Other)
    found = gpu.Findings()
    assert not gpu._parity(tmp_path, "tiny", "cpu", found)
    assert found.extra["parity"]["tiny"].startswith("0 of 4")


@pytest.mark.parametrize("shape", list(SHAPES))
def test_every_shape_is_a_checkpoint_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str):
    # The shape's family and options, with hardly any weights.
    small = {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 32, "head_dim": 16}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    monkeypatch.setitem(random_checkpoint.SHAPES, shape, SHAPES[shape] | small)
    found = gpu.Findings()
    assert gpu._parity(tmp_path, shape, "cpu", found), found.extra


def test_without_a_gpu_the_way_out_is_named(capsys: pytest.CaptureFixture[str]):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--dry-run runs a tiny shape on the CPU" in capsys.readouterr().err
