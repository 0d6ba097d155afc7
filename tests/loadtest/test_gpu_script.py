"""The script for a GPU, run dry on the CPU, without the packages that a GPU machine may lack."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from engine.generation.decoder import matrix as matrix_module
from engine.values import Grammar
from loadtest.generation import random_checkpoint
from loadtest.generation.adapters import write_adapter
from loadtest.generation.random_checkpoint import SHAPES, write_checkpoint
from loadtest.gpu import __main__ as script
from loadtest.gpu import graphs, operations, parity, reference, steps
from loadtest.gpu.record import Budget, Record

REPOSITORY = Path(__file__).parents[2]


def new_record(path: Path | None = None, seconds: float = 600) -> Record:
    return Record("gpu_test", path, Budget(seconds), Console(quiet=True))


def dry_run(part: str, out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "loadtest.gpu", "--dry-run", "--parts", part, "--out", str(out)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = out.iterdir()
    content: dict[str, Any] = json.loads(file.read_text())
    assert "failed" not in content and "skipped" not in content
    return content


def test_dry_run_checks_operations_tokens_adapters_drafts_and_grammars(tmp_path: Path):
    found = dry_run("parity", tmp_path)["parity"]
    assert found["tiny"].startswith("4 of 4 answers equal to transformers")
    assert found["adapters tiny"] == (
        "6 of 6 answers equal to PEFT, 0 differ first at a tie (float32); adapters change 4 of 4"
    )
    assert found["drafts tiny"].startswith("8 of 8 answers equal to those without drafts")
    assert found["graphs tiny"].endswith("sizes recorded")
    assert found["grammars tiny"] == "6 of 6 answers follow their grammar"
    others = ("masked_topk", "sampling", "penalise", "accept_drafts", "vector rows")
    assert {f"operation {name}" for name in (*operations.OPERATIONS, *others)} <= found.keys()
    assert not any("WRONG" in words for words in found.values())


def test_dry_run_times_a_tiny_shape_and_the_parts_of_its_steps(tmp_path: Path):
    content = dry_run("speed", tmp_path)
    assert {row["case"] for row in content["rows"]} >= {"tiny free c=1", "tiny rag c=2", "tiny lora8 c=2"}
    assert all(ratio["value"] > 0 for ratio in content["ratios"])
    decode = content["steps"]["tiny decode 1x128"]
    assert all(decode["part_ms"][part] > 0 for part in ("linear", "attention", "rope and kv write", "activation"))
    assert 0 < len(decode["kernels"]) <= steps.NUM_KERNELS
    for kind in (" graph", " lora8", " lora8 graph"):
        found = content["steps"][f"tiny decode 1x128{kind}"]
        assert found["step_ms"] > 0 and found["num_kernels"] > 0
    assert "tiny prompt 1x512" in content["steps"]


def test_dry_run_compares_the_encoder_with_sentence_transformers(tmp_path: Path):
    content = dry_run("encoder", tmp_path)
    assert content["parity"].keys() == {"encoder float32", "encoder float16"}
    assert {row["system"] for row in content["rows"]} == {"switchyard", "sentence-transformers"}


def test_script_needs_neither_ray_nor_faiss():
    code = (
        "import sys; from loadtest import gpu_retrieval\n"
        "from loadtest.gpu import __main__, part, parity, operations, graphs, speed, steps, encoders\n"
        "print([name for name in ('ray', 'faiss', 'sqlalchemy', 'tantivy', 'fastapi') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_parity_fails_where_the_engine_computes_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Other:
        """transformers, with another head."""

        @staticmethod
        def from_pretrained(path: Path, **options: object) -> object:
            model = its_model.from_pretrained(path, **options)
            with torch.no_grad():
                model.lm_head.weight.copy_(model.lm_head.weight.flip(0))
            return model

    its_model = reference.AutoModelForCausalLM
    monkeypatch.setattr(reference, "AutoModelForCausalLM", Other)
    record = new_record()
    parity.check_tokens(record, "tiny", "cpu", tmp_path)
    assert record.failed["tiny"].startswith("0 of 4")
    assert record.found.extra["parity"]["tiny"].startswith("WRONG: 0 of 4")


@pytest.mark.parametrize("shape", list(SHAPES))
def test_every_shape_is_a_checkpoint_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str):
    # The shape's family and options, with hardly any weights.
    small = {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 32, "head_dim": 16}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    monkeypatch.setitem(random_checkpoint.SHAPES, shape, SHAPES[shape] | small)
    record = new_record()
    parity.check_tokens(record, shape, "cpu", tmp_path)
    assert not record.failed and record.found.extra["parity"].keys() == {shape, f"graphs {shape}"}


# What PEFT asks of transformers was renamed there.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_that_change_no_answer_prove_nothing(tmp_path: Path):
    model = write_checkpoint(tmp_path / "model", "tiny", num_layers=1)
    adapters = {name: write_adapter(tmp_path / name, model, seed=0, std=0.0) for name in "AB"}
    engine = parity.Engine(model, parity.SETTINGS)
    record = new_record()
    try:
        parity.check_adapters(record, "tiny", "cpu", model, engine, adapters)
    finally:
        engine.close()
    assert record.failed["adapters tiny"].endswith("adapters change 0 of 4")


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("choice", "Close the ticket.", "Close the"),
        ("regex", "ABC-0123", "ABC-01234"),
        ("json_schema", '{"label": "login", "is_urgent": true}', '{"label": "other", "is_urgent": true}'),
        ("json_schema", ' {"is_urgent":false,"label":"billing"}', '{"label": "login"}'),
        ("json_schema", '{"label": "login", "is_urgent": true}', '{"label": "login", "is_urgent": tr'),
    ],
)
def test_answers_are_held_against_their_grammar(kind: str, right: str, wrong: str):
    (grammar,) = [each for each in parity.GRAMMARS if each.kind == kind]
    assert isinstance(grammar, Grammar)
    assert parity.follows(grammar, right) and not parity.follows(grammar, wrong)


@pytest.mark.parametrize(("factor", "is_right"), [(1.0, True), (1.01, False), (float("nan"), False)])
def test_recorded_step_that_gives_other_logits_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, is_right: bool
):
    class Other(graphs.Again):
        def record(self, work: Callable[[], None]) -> Callable[[], None]:
            repeat = super().record(work)
            owner = work.func.__self__  # type: ignore[attr-defined]
            return lambda: (repeat(), owner._logits.mul_(factor))[0]

    monkeypatch.setattr(graphs, "Again", Other)
    record = new_record()
    graphs.check_graphs(record, "tiny", "cpu", write_checkpoint(tmp_path, "tiny", num_layers=1))
    assert ("graphs tiny" not in record.failed) == is_right


@pytest.mark.parametrize(("factor", "is_right"), [(1.0, True), (1.01, False), (float("nan"), False)])
def test_operation_that_is_off_on_the_device_alone_is_named(
    monkeypatch: pytest.MonkeyPatch, factor: float, is_right: bool
):
    def operation(device: str, dtype: torch.dtype, is_exact: bool) -> torch.Tensor:
        return torch.ones(3) * (factor if device == "elsewhere" else 1.0)

    monkeypatch.setattr(operations, "OPERATIONS", {"ones": operation})
    record = new_record()
    operations.check_operations(record, "elsewhere")
    assert ("operation ones" not in record.failed) == is_right


def test_step_that_fails_is_noted_and_the_file_written_at_once(tmp_path: Path):
    def fail() -> None:
        raise RuntimeError("CUDA error: an illegal memory access")

    record = new_record(tmp_path / "out.json")
    assert not record.attempt("first", fail)
    assert json.loads((tmp_path / "out.json").read_text())["failed"]["first"].startswith("RuntimeError: CUDA error")
    assert record.attempt("second", lambda: None)
    assert json.loads((tmp_path / "out.json").read_text())["seconds"].keys() == {"second"}


def test_step_for_which_no_time_is_left_is_skipped_and_said():
    record = new_record(seconds=10)
    assert not record.attempt("long", lambda: pytest.fail("it ran"), estimate_s=60)
    assert record.found.extra["skipped"]["long"] == "60 s needed, 10 s left"


def test_part_that_takes_longer_than_the_limit_is_ended():
    assert script._run(["parity", "/nowhere", "600", "cpu", "dry", "/nowhere"], 0.2) == -9


def test_timing_the_parts_of_a_step_leaves_the_engine_as_it_was():
    before = matrix_module.linear
    with pytest.raises(RuntimeError, match="in the step"), steps._marked(is_cuda=False):
        assert matrix_module.linear is not before
        raise RuntimeError("in the step")
    assert matrix_module.linear is before


def test_without_a_gpu_the_way_out_is_named(capsys: pytest.CaptureFixture[str]):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SystemExit):
        script.main([])
    assert "--dry-run runs a tiny shape on the CPU" in capsys.readouterr().err
