"""`switchyard tune` from a file of examples to a registered adapter, with a model that learns in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from tiny_encoder import write_tiny_encoder
from tiny_model import write_tiny_model
from tuning.tuning_files import chats, labelled, questions, write_rows

from engine.cli.main import main
from engine.cli.tune_progress import TuneProgress
from engine.errors import ModelSourceError
from engine.generation.adapters.files import read_adapter
from engine.generation.adapters.inputs import read_inputs
from engine.generation.adapters.manifest import MANIFEST_FILE, AdapterManifest, parse_manifest
from engine.generation.adapters.registry import AdapterRegistry
from engine.generation.decoder.spec import read_spec
from engine.models import resolve_model
from engine.retrieval.encoding.encoder import Encoder
from engine.tuning.outcome import Outcome, outcome_from_json
from engine.tuning.run.events import Event
from engine.tuning.training.events import Evaluated, Stepped

# Enough steps for a model that begins at random.
FAST = ("--learning-rate", 1e-2, "--batch-tokens", 200, "--epochs", 5)
NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return Encoder(write_tiny_encoder(tmp_path_factory.mktemp("models") / "encoder"), threads=1, batch_tokens=2048)


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny encoder in place of the default one, which would be downloaded."""
    monkeypatch.setattr("engine.cli.tune_models.load_encoder", lambda: encoder)
    monkeypatch.setenv("SWITCHYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SWITCHYARD_DATA", str(tmp_path / "state"))
    monkeypatch.setenv("SWITCHYARD_URL", NOBODY)
    monkeypatch.setenv("COLUMNS", "200")
    torch.set_num_threads(1)


def tune(model: Path, *arguments: object) -> Result:
    return CliRunner().invoke(main, ["tune", "--name", "bot", "--model", str(model), *map(str, arguments)])


def outcome_of(state: Path) -> Outcome:
    return outcome_from_json(json.loads((state / "tuning" / "bot" / "result.json").read_text()))


def adapter_of(state: Path) -> Path:
    return AdapterRegistry(state / "adapters").locate("bot")


def manifest_of(state: Path) -> AdapterManifest:
    return parse_manifest((adapter_of(state) / MANIFEST_FILE).read_bytes(), "bot")


def test_classify_from_rows_to_an_adapter_that_a_server_reads(model: Path, tmp_path: Path):
    data = write_rows(tmp_path / "data.jsonl", labelled(60))
    evaluation = write_rows(tmp_path / "eval.jsonl", labelled(60, seed=9))
    done = tune(model, data, "--eval", evaluation, *FAST, "--json", tmp_path / "out.json")
    assert done.exit_code == 0, done.output
    assert "12 of 12 validation rows: accuracy" in done.stdout
    assert f"no server answers at {NOBODY}" in done.stdout
    state = tmp_path / "state"
    outcome = outcome_of(state)
    assert json.loads((tmp_path / "out.json").read_text()) == outcome.to_json()
    assert json.loads((state / "tuning" / "bot" / "guard.json").read_text()) == outcome.guard
    found = outcome.evaluation("evaluation")
    assert found is not None and found.num_predicted == 60
    assert found.whole.before is not None and all(each.before is not None for each in found.predictions)
    assert found.whole.after["accuracy"] > 0.8 > 0.5 > found.whole.before["accuracy"]
    for row, each in zip(labelled(60, seed=9), found.predictions, strict=True):
        assert each.targets == (row["label"],)
        assert each.after.quality == (each.after.text == row["label"])
        assert each.after.confidence is not None and 1 / 3 <= each.after.confidence <= 1
    assert outcome.run.train_metrics is not None and outcome.run.train_metrics["accuracy"] > 0.8
    manifest = manifest_of(state)
    files = resolve_model(str(model), kind="generator")
    assert (manifest.task, manifest.base_digest) == ("classify", files.digest)
    assert [(label.name, label.text) for label in manifest.labels] == [
        ("card_lost", "card lost"),
        ("refund", "refund"),
        ("top_up", "top up"),
    ]
    assert manifest.metrics == outcome.evaluations[0].whole.after
    assert (manifest.verdict, manifest.num_examples) == (outcome.guard["verdict"], 48)
    info, _ = read_adapter(
        adapter_of(state), "bot", read_spec(model), model_digest=files.digest, max_rank=8, dtype=torch.float32
    )
    assert info.rank == 8
    inputs = read_inputs(adapter_of(state), manifest, "bot")
    assert inputs is not None and inputs.embeddings.shape == (48, 32)
    assert [each.name for each in outcome.baselines] == ["TF-IDF + LR", "embeddings + LR"]


def test_qa_with_contexts_learns_to_answer_in_a_word(model: Path, tmp_path: Path):
    rows = questions(60)
    rows[0] |= {"answers": [], "unanswerable": True}
    data = write_rows(tmp_path / "data.jsonl", rows)
    done = tune(model, data, *FAST, "--answers", 10)
    assert done.exit_code == 0, done.output
    outcome = outcome_of(tmp_path / "state")
    assert (outcome.task, outcome.context, outcome.metric) == ("qa", "gold", "f1")
    whole = outcome.evaluations[0].whole
    assert whole.num_rows == 10 < outcome.num_validation
    assert whole.before is not None and whole.after["loss"] < 0.5 * whole.before["loss"]
    assert set(whole.after) == {"f1", "exact_match", "not_in_documents", "loss"}
    assert (manifest_of(tmp_path / "state").task, manifest_of(tmp_path / "state").context) == ("qa", "gold")


def test_chat_learns_what_the_assistant_says(model: Path, tmp_path: Path):
    data = write_rows(tmp_path / "data.jsonl", chats(60))
    done = tune(model, data, *FAST, "--force")
    assert done.exit_code == 0, done.output
    outcome = outcome_of(tmp_path / "state")
    assert outcome.evaluations[0].whole.after["f1"] > 0.9
    assert outcome.evaluations[0].predictions[0].after.text == "The day."
    assert manifest_of(tmp_path / "state").instruction == outcome.instruction == "You are a helpful assistant."


def test_exceptions_are_repeated_in_training_and_judged_by_themselves(model: Path, tmp_path: Path):
    data = write_rows(tmp_path / "data.jsonl", labelled(60))
    odd = write_rows(tmp_path / "odd.jsonl", [row | {"text": f"not {row['text']}"} for row in labelled(15, seed=5)])
    done = tune(model, data, "--exceptions", odd, "--exceptions-factor", 4, "--epochs", 1)
    assert done.exit_code == 0, done.output
    outcome = outcome_of(tmp_path / "state")
    slices = {each.name: each for each in outcome.evaluations[0].slices}
    assert set(slices) == {"all", "exceptions", "others"}
    assert slices["exceptions"].num_rows + slices["others"].num_rows == slices["all"].num_rows
    assert slices["exceptions"].num_rows == sum(each.is_exception for each in outcome.evaluations[0].predictions)
    assert outcome.num_exceptions + slices["exceptions"].num_rows == 15
    # 75 rows, of which those held out are not trained on.
    repeated = outcome.num_train + 3 * outcome.num_exceptions
    assert f"training on {repeated} examples" in done.stdout


def test_curve_trains_on_fewer_rows_and_judges_by_the_same(model: Path, tmp_path: Path):
    data = write_rows(tmp_path / "data.jsonl", labelled(60))
    done = tune(model, data, "--epochs", 1, "--curve", "6,24")
    assert done.exit_code == 0, done.output
    outcome = outcome_of(tmp_path / "state")
    # What was trained on all rows can be served before the others are trained.
    registered, first = done.stdout.index("trainings on fewer rows follow"), done.stdout.index("training on 6 examples")
    assert registered < first
    point = json.loads((tmp_path / "state" / "tuning" / "bot" / "curve" / "24" / "trained.json").read_text())
    assert (point["run"]["settings"]["evaluations_per_epoch"], outcome.run.settings["evaluations_per_epoch"]) == (2, 4)
    assert [(point.num_train, point.num_per_label) for point in outcome.curve] == [(6, 2.0), (24, 8.0), (48, 16.0)]
    assert outcome.curve[-1].metrics == outcome.evaluations[0].whole.after
    refused = tune(model, data, "--epochs", 1, "--curve", "6,500")
    assert refused.exit_code == 1
    assert "--curve 500 is more than the 48 rows that are trained on" in refused.stderr


def test_data_that_are_refused_are_trained_on_with_force_alone(model: Path, tmp_path: Path):
    rows = [{"text": f"Reset my password {i}", "label": "ab"[i % 2]} for i in range(40)]
    rows += labelled(4, labels=("a", "b", "a"))
    data = write_rows(tmp_path / "data.jsonl", rows)
    refused = tune(model, data, "--epochs", 1)
    assert refused.exit_code == 1
    assert "not fit to be trained on" in refused.stderr and "add --force" in refused.stderr
    assert not (tmp_path / "state" / "adapters").exists()
    forced = tune(model, data, "--epochs", 1, "--force")
    assert forced.exit_code == 0, forced.output
    assert outcome_of(tmp_path / "state").is_forced
    assert manifest_of(tmp_path / "state").verdict == "refuse"


class _StoppedAfterAnEvaluation(TuneProgress):
    """Ctrl-C in the step after the first evaluation."""

    has_evaluated = False

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if self.has_evaluated and isinstance(event, Stepped):
            raise KeyboardInterrupt
        self.has_evaluated = self.has_evaluated or isinstance(event, Evaluated)


def test_stopped_run_goes_on_and_another_one_is_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data, state = write_rows(tmp_path / "data.jsonl", labelled(60)), tmp_path / "state"
    assert tune(model, data, "--epochs", 2).exit_code == 0
    whole, inputs = outcome_of(state), manifest_of(state).inputs
    with monkeypatch.context() as patch:
        patch.setattr("engine.cli.tune_run.TuneProgress", _StoppedAfterAnEvaluation)
        stopped = tune(model, data, "--epochs", 2)
    assert stopped.exit_code == 1
    assert f"stopped; what is done is in {state / 'tuning' / 'bot'}" in stopped.stderr
    assert not (state / "tuning" / "bot" / "result.json").exists()
    other = tune(model, data, "--epochs", 3)
    assert other.exit_code == 1
    assert "holds a stopped run of something else: epochs was 2 and is now 3" in other.stderr
    assert "--restart" in other.stderr
    resumed = tune(model, data, "--epochs", 2)
    assert resumed.exit_code == 0, resumed.output
    assert "going on after step" in resumed.stdout
    assert "the base model is asked" not in resumed.stdout
    again = outcome_of(state)
    assert again.adapter_digest == whole.adapter_digest
    assert again.run.history == whole.run.history
    assert again.evaluations == whole.evaluations
    assert manifest_of(state).inputs == inputs is not None


def test_restart_deletes_a_stopped_run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = write_rows(tmp_path / "data.jsonl", labelled(60))
    with monkeypatch.context() as patch:
        patch.setattr("engine.cli.tune_run.TuneProgress", _StoppedAfterAnEvaluation)
        assert tune(model, data, "--epochs", 2).exit_code == 1
    done = tune(model, data, "--epochs", 1, "--restart")
    assert done.exit_code == 0, done.output
    assert "going on after" not in done.stdout
    assert outcome_of(tmp_path / "state").run.settings["epochs"] == 1


def test_time_allowed_ends_a_training_with_its_best_adapter(model: Path, tmp_path: Path):
    data = write_rows(tmp_path / "data.jsonl", labelled(60))
    done = tune(model, data, "--max-minutes", 1e-6)
    assert done.exit_code == 0, done.output
    run = outcome_of(tmp_path / "state").run
    assert (run.stopped, run.num_steps) == ("time", 1)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--curve", "50,x"), "'50,x' is no list of numbers; write 50,200,1000"),
        (("--curve", "50,50"), "curve=50,50 must be different numbers of rows"),
        (("--epochs", "0"), "0 is not in the range x>=1"),
        (("--learning-rate", "0"), "0.0 is not in the range x>0"),
        (("--exceptions-factor", "101"), "101 is not in the range"),
        (("--task", "qa"), "which is for classify, not qa"),
        (("--context", "wiki"), "'wiki' is not one of"),
    ],
)
def test_bad_options_are_bad_usage_by_name(model: Path, tmp_path: Path, arguments: tuple[str, ...], why: str):
    done = tune(model, write_rows(tmp_path / "data.jsonl", labelled(60)), *arguments)
    assert done.exit_code == 2
    assert why in done.stderr
    assert not (tmp_path / "state").exists()


def test_options_that_do_not_fit_the_data_are_refused_with_the_fix(model: Path, tmp_path: Path):
    labels = write_rows(tmp_path / "labels.jsonl", labelled(60))
    asked = write_rows(tmp_path / "questions.jsonl", [{**row, "context": None} for row in questions(60)])
    assert "is for questions" in tune(model, labels, "--context", "gold").stderr
    no_context = tune(model, asked, "--context", "gold", "--force")
    assert no_context.exit_code == 1
    assert "questions.jsonl:1: has no 'context', which --context gold shows" in no_context.stderr
    no_server = tune(model, asked, "--context", "retrieved", "--restart")
    assert no_server.exit_code == 1
    assert f"no server answers at {NOBODY}" in no_server.stderr
    other = tune(model, labels, "--exceptions", write_rows(tmp_path / "odd.jsonl", chats(5)))
    assert other.exit_code == 1
    assert "Exceptions are rows of the same kind" in other.stderr


def test_tune_goes_on_without_an_encoder_and_says_what_is_missing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def missing() -> Encoder:
        raise ModelSourceError("there is no encoder")

    monkeypatch.setattr("engine.cli.tune_models.load_encoder", missing)
    data = write_rows(tmp_path / "data.jsonl", labelled(60))
    done = tune(model, data, "--epochs", 1)
    assert done.exit_code == 0, done.output
    assert "the adapter will carry no training inputs" in done.stderr and "there is no encoder" in done.stderr
    assert manifest_of(tmp_path / "state").inputs is None
    assert not (adapter_of(tmp_path / "state") / "inputs.safetensors").exists()
    assert [each.name for each in outcome_of(tmp_path / "state").baselines] == ["TF-IDF + LR"]
    needed = tune(model, data, "--epochs", 1, "--embed")
    assert needed.exit_code == 1 and "there is no encoder" in needed.stderr


def test_help_has_an_example():
    done = CliRunner().invoke(main, ["tune", "--help"])
    assert "switchyard tune examples.jsonl --name support-bot --eval held_out.jsonl" in done.output


def test_forty_nearly_equal_rows_are_refused_and_forced_ones_overfit_with_the_best_adapter_kept(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # How far so small a model overfits depends on the last bits, so they are the same on every processor.
    monkeypatch.setattr("engine.tuning.training.model.training_dtype", lambda device: torch.float32)
    # The label is chance, so whatever lowers the training loss is learned by heart.
    rows = [{"text": f"How do I reset my password, user {i}?", "label": "ab"[i * i % 7 % 2]} for i in range(40)]
    data = write_rows(tmp_path / "data.jsonl", rows)
    refused = tune(model, data)
    assert refused.exit_code == 1 and "nearly repeat another one, 1 differ" in refused.output
    assert not (tmp_path / "state" / "adapters").exists()
    evaluation = write_rows(tmp_path / "eval.jsonl", rows[::-1][:20])
    options = ("--learning-rate", 2e-2, "--batch-tokens", 200, "--epochs", 60)
    done = tune(model, data, "--force", *options, "--eval", evaluation)
    assert done.exit_code == 0, done.output
    outcome = outcome_of(tmp_path / "state")
    assert outcome.is_forced and outcome.is_split_by_row and (outcome.num_train, outcome.num_validation) == (32, 8)
    history = outcome.run.history
    assert outcome.run.stopped == "patience" and outcome.run.best.step < history[-1].step
    lowest = min(history, key=lambda point: point.valid_loss)
    assert history[-1].train_loss < lowest.train_loss and history[-1].valid_loss > lowest.valid_loss
    report = (tmp_path / "state" / "tuning" / "bot" / "report.html").read_text()
    for part in ("Overfitting was seen", "No group of rows could be held out whole", "by --force", "leak"):
        assert part in report, part
